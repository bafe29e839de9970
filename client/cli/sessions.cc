// smt session list|show|create|update|delete; the other ones have files of their own.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "client/cli/commands.h"

namespace smt::cli {

std::string FormatTime(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(time.seconds()), absl::UTCTimeZone());
}

namespace {

void Show(const v1::Session& session) {
  absl::PrintF(
      "%s\n  position     %d\n  branch       %d\n  active       %s\n  created      %s\n  updated      %s\n  expires    "
      "  %s\n",
      session.name(), session.position(), session.branch(), session.active() ? "yes" : "no",
      FormatTime(session.create_time()), FormatTime(session.update_time()),
      session.has_expire_time() ? FormatTime(session.expire_time()) : "never");
  for (const auto& [key, value] : session.labels()) absl::PrintF("  label        %s=%s\n", key, value);
  absl::PrintF("  etag         %s\n  model        %s\n", session.etag(), session.model_fingerprint());
}

int List(const Context& context) {
  client::Client client(context.options);
  std::string page_token;
  bool header = false;
  do {
    std::vector<v1::Session> page;
    const client::Error error = client.ListSessions(1000, page_token, &page, &page_token);
    if (!error.ok()) return Fail(error);
    for (const v1::Session& session : page) {
      if (context.json) {
        PrintJson(session);
        continue;
      }
      if (!header) absl::PrintF("%-32s %12s  %-6s  %s\n", "SESSION", "POSITION", "ACTIVE", "UPDATED");
      header = true;
      absl::PrintF("%-32s %12d  %-6s  %s\n", session.name().substr(session.name().find('/') + 1), session.position(),
                   session.active() ? "yes" : "no", FormatTime(session.update_time()));
    }
  } while (!page_token.empty());
  if (!header && !context.json) absl::FPrintF(stderr, "no sessions\n");
  return 0;
}

}  // namespace

int PrintSession(const Context& context, const client::Error& error, const v1::Session& session) {
  if (!error.ok()) return Fail(error);
  if (context.json) {
    PrintJson(session);
  } else {
    Show(session);
  }
  return 0;
}

bool AddLabels(const std::vector<std::string>& labels, v1::Session* session) {
  for (const std::string& label : labels) {
    const size_t at = label.find('=');
    if (at == std::string::npos) {
      absl::FPrintF(stderr, "smt: --label=%s: expected KEY=VALUE\n", label);
      return false;
    }
    (*session->mutable_labels())[label.substr(0, at)] = label.substr(at + 1);
  }
  return true;
}

void SetTtl(double seconds, v1::Session* session) {
  const timespec ttl = absl::ToTimespec(absl::Seconds(seconds));
  session->mutable_ttl()->set_seconds(ttl.tv_sec);
  session->mutable_ttl()->set_nanos(static_cast<int32_t>(ttl.tv_nsec));
}

void AddSessions(CLI::App* app, Context* context) {
  CLI::App* sessions =
      app->add_subcommand("session", "List, show, make, change, fork, roll back, copy and check sessions");
  sessions->require_subcommand(1);
  auto flags = std::make_shared<SessionFlags>();

  CLI::App* list = sessions->add_subcommand("list", "All sessions, ordered by name");
  list->callback([=] { context->run = [=] { return List(*context); }; });

  CLI::App* show = sessions->add_subcommand("show", "One session");
  show->add_option("session", flags->id, "Its id")->required();
  show->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::Session session;
      const client::Error error = client.GetSession(client::SessionName(flags->id), &session);
      return PrintSession(*context, error, session);
    };
  });

  CLI::App* create = sessions->add_subcommand("create", "Make an empty session");
  create->add_option("session", flags->id, "Its id; drawn by the server when left out");
  auto* create_ttl =
      create->add_option("--ttl", flags->ttl, "Seconds it is kept after its last use. Default: for ever");
  create->add_option("--label", flags->labels, "KEY=VALUE; may be repeated")->allow_extra_args(false);
  create->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::CreateSessionRequest request;
      request.set_session_id(flags->id);
      if (*create_ttl) SetTtl(flags->ttl, request.mutable_session());
      if (!AddLabels(flags->labels, request.mutable_session())) return 2;
      v1::Session session;
      const client::Error error = client.CreateSession(request, &session);
      return PrintSession(*context, error, session);
    };
  });

  CLI::App* update = sessions->add_subcommand("update", "Change ttl or labels (all labels are replaced)");
  update->add_option("session", flags->id, "Its id")->required();
  auto* update_ttl = update->add_option("--ttl", flags->ttl, "Seconds it is kept after its last use");
  update->add_option("--label", flags->labels, "KEY=VALUE; may be repeated")->allow_extra_args(false);
  update->add_option("--etag", flags->etag, "Fail unless this is the present etag");
  update->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::UpdateSessionRequest request;
      request.mutable_session()->set_name(client::SessionName(flags->id));
      request.mutable_session()->set_etag(flags->etag);
      if (*update_ttl) {
        SetTtl(flags->ttl, request.mutable_session());
        request.mutable_update_mask()->add_paths("ttl");
      }
      if (!flags->labels.empty()) request.mutable_update_mask()->add_paths("labels");
      if (!AddLabels(flags->labels, request.mutable_session())) return 2;
      v1::Session session;
      const client::Error error = client.UpdateSession(request, &session);
      return PrintSession(*context, error, session);
    };
  });

  CLI::App* remove = sessions->add_subcommand("delete", "Delete a session with its log and state");
  remove->add_option("session", flags->id, "Its id")->required();
  remove->add_option("--etag", flags->etag, "Fail unless this is the present etag");
  remove->add_flag("--allow_missing", flags->allow_missing, "A session that is not there is no error");
  remove->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::DeleteSessionRequest request;
      request.set_name(client::SessionName(flags->id));
      if (!flags->etag.empty()) request.set_etag(flags->etag);
      request.set_allow_missing(flags->allow_missing);
      const client::Error error = client.DeleteSession(request);
      if (!error.ok()) return Fail(error);
      if (!context->json) absl::FPrintF(stderr, "deleted %s\n", request.name());
      return 0;
    };
  });

  AddBranching(sessions, context);
  AddSessionTransfer(sessions, context);
}

}  // namespace smt::cli
