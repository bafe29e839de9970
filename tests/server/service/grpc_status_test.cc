#include "server/service/grpc_status.h"

#include <gmock/gmock.h>

#include "model/base/strings.h"
#include "server/base/status_details.h"
#include "server/service/violations.h"
#include "tests/server/service/service_testing.h"

namespace smt {
namespace {

using testing::HasSubstr;
using testing::SizeIs;

TEST(GrpcStatusTest, OkHasNoDetails) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  EXPECT_EQ(ToGrpcStatus(absl::OkStatus()).error_details(), "");
}

TEST(GrpcStatusTest, AnErrorWithoutDetailsGetsTheUsualOnesOfItsCode) {
  const grpc::Status aborted = ToGrpcStatus(absl::AbortedError("busy"));
  EXPECT_EQ(aborted.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(aborted).info.reason(), "CONFLICT");
  EXPECT_EQ(DetailsOf(aborted).retry.retry_delay().nanos(), 100'000'000);
  EXPECT_EQ(DetailsOf(ToGrpcStatus(absl::UnavailableError("away"))).retry.retry_delay().seconds(), 1);
  EXPECT_FALSE(DetailsOf(ToGrpcStatus(absl::NotFoundError("no"))).has_retry);
}

TEST(GrpcStatusTest, EveryKindOfDetailArrives) {
  const StatusDetails details = {.reason = "DIVERGED",
                                 .metadata = {{"position", "12"}},
                                 .resource = StatusDetails::Resource{"session", "sessions/a", "stands elsewhere"},
                                 .retry_delay = absl::Milliseconds(2500),
                                 .preconditions = {{"DIVERGED", "sessions/a", "the digest differs"}}};
  const ErrorDetails got = DetailsOf(ToGrpcStatus(WithDetails(absl::FailedPreconditionError("no"), details)));
  EXPECT_EQ(got.info.reason(), "DIVERGED");
  EXPECT_EQ(got.info.metadata().at("position"), "12");
  EXPECT_EQ(got.resource.resource_name(), "sessions/a");
  EXPECT_EQ(got.retry.retry_delay().seconds(), 2);
  EXPECT_EQ(got.retry.retry_delay().nanos(), 500'000'000);
  EXPECT_EQ(got.precondition.violations(0).type(), "DIVERGED");
}

TEST(GrpcStatusTest, OurOwnBugsAreNotToldInDetail) {
  const grpc::Status status = ToGrpcStatus(absl::InternalError("secret pointer 0xdead"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), Not(HasSubstr("secret")));
}

TEST(GrpcStatusTest, DetailsStayWithinFourKibibytes) {
  Violations violations;
  for (int i = 0; i < 100; ++i) violations.Add(StrCat("spec.field[", i, "]"), std::string(300, 'x'));
  const grpc::Status status = ToGrpcStatus(violations.ToStatus());
  const ErrorDetails details = DetailsOf(status);  // checks the size
  EXPECT_GE(details.fields.size(), 8u);
  EXPECT_LE(details.fields.size(), 32u);
  EXPECT_THAT(status.error_message(), HasSubstr("and 99 more violations"));
}

TEST(GrpcStatusTest, ThirtyTwoShortViolationsAreAllTold) {
  Violations violations;
  for (int i = 0; i < 40; ++i) violations.Add(StrCat("f", i), "is bad");
  EXPECT_THAT(DetailsOf(ToGrpcStatus(violations.ToStatus())).fields, SizeIs(32));
}

TEST(ViolationsTest, ValuesAreCutToSixtyFourBytesOfUtf8) {
  EXPECT_EQ(ShowValue("abc"), "'abc'");
  EXPECT_EQ(ShowValue(std::string(100, 'x')), "'" + std::string(64, 'x') + "...'");
  EXPECT_EQ(ShowValue(std::string(63, 'x') + "\xC3\xA9"), "'" + std::string(63, 'x') + "...'");
  EXPECT_EQ(ShowValue("a\n\xFF"), "'a \xEF\xBF\xBD'");
}

TEST(StatusDetailsTest, SurviveTheStatusThatCarriesThem) {
  EXPECT_TRUE(GetDetails(absl::NotFoundError("plain")).empty());
  const StatusDetails details = GetDetails(WithDetails(
      absl::InvalidArgumentError("x"), {.reason = "R", .violations = {{"f", "d"}}, .quotas = {{"s", "q"}}}));
  EXPECT_EQ(details.reason, "R");
  EXPECT_EQ(details.violations.at(0).field, "f");
  EXPECT_EQ(details.quotas.at(0).description, "q");
  EXPECT_FALSE(details.resource.has_value());
}

}  // namespace
}  // namespace smt
