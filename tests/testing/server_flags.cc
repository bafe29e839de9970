#include "tests/testing/server_flags.h"

#include <cstdint>
#include <string>

#include "absl/flags/flag.h"
#include "absl/time/time.h"

namespace {

const smt::ServerOptions& Default() {
  static const auto* options = new smt::ServerOptions;
  return *options;
}

}  // namespace

ABSL_FLAG(std::string, model_dir, "", "");
ABSL_FLAG(std::string, store_dir, "", "");
ABSL_FLAG(std::string, listen_address, "", "");
ABSL_FLAG(std::string, metrics_address, "", "");
ABSL_FLAG(std::string, address_file, "", "");
ABSL_FLAG(std::string, device, "cpu", "");
ABSL_FLAG(std::string, dtype, "auto", "");
ABSL_FLAG(int32_t, max_slots, Default().max_slots, "");
ABSL_FLAG(int32_t, ingest_tokens_per_step, Default().ingest_tokens_per_step, "");
ABSL_FLAG(absl::Duration, device_timeout, Default().device_timeout, "");
ABSL_FLAG(absl::Duration, drain_delay, absl::ZeroDuration(), "");

namespace smt {

ServerOptions OptionsFromTestFlags() {
  ServerOptions options;
  options.model_dir = absl::GetFlag(FLAGS_model_dir);
  options.store_dir = absl::GetFlag(FLAGS_store_dir);
  options.listen_address = absl::GetFlag(FLAGS_listen_address);
  options.metrics_address = absl::GetFlag(FLAGS_metrics_address);
  options.address_file = absl::GetFlag(FLAGS_address_file);
  options.device = absl::GetFlag(FLAGS_device);
  options.dtype = absl::GetFlag(FLAGS_dtype);
  options.max_slots = absl::GetFlag(FLAGS_max_slots);
  options.ingest_tokens_per_step = absl::GetFlag(FLAGS_ingest_tokens_per_step);
  options.device_timeout = absl::GetFlag(FLAGS_device_timeout);
  options.drain_delay = absl::GetFlag(FLAGS_drain_delay);
  return options;
}

}  // namespace smt
