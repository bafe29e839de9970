// smt session fork|rollback and smt session checkpoint create|list|delete.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"

namespace smt::cli {
namespace {

struct BranchingFlags : SessionFlags {
  std::string new_id, checkpoint, request_id;
  int64_t expected_position = 0;
  int32_t turns = 0;
};

std::string LastPart(const std::string& name) { return name.substr(name.rfind('/') + 1); }

constexpr char kListRow[] = "%-32s %12s %8s  %-24s  %s\n";

int PrintCheckpoint(const Context& context, const client::Error& error, const v1::Checkpoint& checkpoint) {
  if (!error.ok()) return Fail(error);
  if (context.json) {
    PrintJson(checkpoint);
  } else {
    absl::PrintF("%s\n  position     %d\n  branch       %d\n  created      %s\n", checkpoint.name(),
                 checkpoint.position(), checkpoint.branch(), FormatTime(checkpoint.create_time()));
  }
  return 0;
}

int ListCheckpoints(const Context& context, const std::string& session) {
  client::Client client(context.options);
  std::string page_token;
  bool header = false;
  do {
    std::vector<v1::Checkpoint> page;
    const client::Error error =
        client.ListCheckpoints(client::SessionName(session), 1000, page_token, &page, &page_token);
    if (!error.ok()) return Fail(error);
    for (const v1::Checkpoint& checkpoint : page) {
      if (context.json) {
        PrintJson(checkpoint);
        continue;
      }
      if (!header) absl::PrintF(kListRow, "CHECKPOINT", "POSITION", "BRANCH", "CREATED", "MADE");
      header = true;
      const std::string request =
          checkpoint.request_id().empty() ? "" : absl::StrCat(", request_id ", checkpoint.request_id());
      absl::PrintF(kListRow, LastPart(checkpoint.name()), absl::StrCat(checkpoint.position()),
                   absl::StrCat(checkpoint.branch()), FormatTime(checkpoint.create_time()),
                   checkpoint.automatic() ? absl::StrCat("at a turn's start", request) : "on request");
    }
  } while (!page_token.empty());
  if (!header && !context.json) absl::FPrintF(stderr, "no checkpoints\n");
  return 0;
}

void AddFork(CLI::App* app, Context* context) {
  auto flags = std::make_shared<BranchingFlags>();
  CLI::App* c = app->add_subcommand("fork", "Make a session that goes on from a point of another one");
  c->footer(
      "Examples:\n"
      "  smt session fork tale ending-b                       from where the session stands\n"
      "  smt session fork tale ending-c --checkpoint=chapter  from a checkpoint, even while the session is written\n"
      "  smt generate --session=ending-b --prompt=' But then'");
  c->add_option("session", flags->id, "Id of the one to fork")->required();
  c->add_option("new_session", flags->new_id, "Id of the new one; drawn by the server when left out");
  c->add_option("--checkpoint", flags->checkpoint, "Where to fork. Default: where the session stands");
  auto* expected =
      c->add_option("--expected_position", flags->expected_position, "Fail unless the session stands there");
  auto* ttl = c->add_option("--ttl", flags->ttl, "Seconds it is kept after its last use. Default: as the old one");
  c->add_option("--label", flags->labels, "KEY=VALUE; may be repeated. Default: those of the old one")
      ->allow_extra_args(false);
  c->add_option("--request_id", flags->request_id, "A retry with the same id makes no second session. Default: none");
  c->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::ForkSessionRequest request;
      request.set_name(client::SessionName(flags->id));
      request.set_session_id(flags->new_id);
      request.set_checkpoint(client::CheckpointName(flags->id, flags->checkpoint));
      if (*expected) request.set_expected_position(flags->expected_position);
      if (*ttl) SetTtl(flags->ttl, request.mutable_session());
      if (!AddLabels(flags->labels, request.mutable_session())) return 2;
      request.set_request_id(flags->request_id);
      v1::Session session;
      const client::Error error = client.ForkSession(request, &session);
      return PrintSession(*context, error, session);
    };
  });
}

void AddRollback(CLI::App* app, Context* context) {
  auto flags = std::make_shared<BranchingFlags>();
  CLI::App* c = app->add_subcommand("rollback", "Return to an earlier position and begin a new branch there");
  c->footer(
      "Examples:\n"
      "  smt session rollback tale --turns=1             undo the last request: its prompt and what it generated\n"
      "  smt session rollback tale --checkpoint=chapter  a checkpoint, also of a branch that was left\n"
      "  smt session checkpoint list tale                where one can return to");
  c->add_option("session", flags->id, "Its id")->required();
  auto* turns = c->add_option("--turns", flags->turns, "Requests to undo, 1 or more");
  auto* checkpoint = c->add_option("--checkpoint", flags->checkpoint, "Checkpoint to return to")->excludes(turns);
  auto* etag = c->add_option("--etag", flags->etag, "Fail unless this is the present etag");
  c->add_option("--request_id", flags->request_id, "A retry with the same id rolls back once. Default: none");
  c->callback([=] {
    context->run = [=] {
      if (!*turns && !*checkpoint) {
        absl::FPrintF(stderr, "smt: where to: give --turns=N or --checkpoint=ID\n");
        return 2;
      }
      client::Client client(context->options);
      v1::RollbackSessionRequest request;
      request.set_name(client::SessionName(flags->id));
      if (*turns) {
        request.set_turns(flags->turns);
      } else {
        request.set_checkpoint(client::CheckpointName(flags->id, flags->checkpoint));
      }
      if (*etag) request.set_etag(flags->etag);
      request.set_request_id(flags->request_id);
      v1::Session session;
      const client::Error error = client.RollbackSession(request, &session);
      return PrintSession(*context, error, session);
    };
  });
}

void AddCheckpoint(CLI::App* app, Context* context) {
  auto flags = std::make_shared<BranchingFlags>();
  CLI::App* checkpoints = app->add_subcommand("checkpoint", "Positions of a session that can be returned to");
  checkpoints->require_subcommand(1);
  checkpoints->footer(
      "Examples:\n"
      "  smt session checkpoint create tale chapter  name where the session stands\n"
      "  smt session checkpoint list tale            those, and the starts of the last turns\n"
      "  smt session rollback tale --checkpoint=chapter\n"
      "  smt session checkpoint delete tale chapter");

  CLI::App* create = checkpoints->add_subcommand("create", "Name where the session stands");
  create->add_option("session", flags->id, "The session's id")->required();
  create->add_option("checkpoint", flags->checkpoint, "Its id; drawn by the server when left out");
  auto* expected =
      create->add_option("--expected_position", flags->expected_position, "Fail unless the session stands there");
  create->add_option("--request_id", flags->request_id, "A retry with the same id makes no second one. Default: none");
  create->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::CreateCheckpointRequest request;
      request.set_parent(client::SessionName(flags->id));
      request.set_checkpoint_id(flags->checkpoint);
      if (*expected) request.set_expected_position(flags->expected_position);
      request.set_request_id(flags->request_id);
      v1::Checkpoint checkpoint;
      const client::Error error = client.CreateCheckpoint(request, &checkpoint);
      return PrintCheckpoint(*context, error, checkpoint);
    };
  });

  CLI::App* list = checkpoints->add_subcommand("list", "All of a session, ordered by position");
  list->add_option("session", flags->id, "The session's id")->required();
  list->callback([=] { context->run = [=] { return ListCheckpoints(*context, flags->id); }; });

  CLI::App* remove = checkpoints->add_subcommand("delete", "Forget one; the session is unchanged");
  remove->add_option("session", flags->id, "The session's id")->required();
  remove->add_option("checkpoint", flags->checkpoint, "Its id")->required();
  remove->add_option("--request_id", flags->request_id, "A retry with the same id is no error. Default: none");
  remove->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::DeleteCheckpointRequest request;
      request.set_name(client::CheckpointName(flags->id, flags->checkpoint));
      request.set_request_id(flags->request_id);
      const client::Error error = client.DeleteCheckpoint(request);
      if (!error.ok()) return Fail(error);
      if (!context->json) absl::FPrintF(stderr, "deleted %s\n", request.name());
      return 0;
    };
  });
}

}  // namespace

void AddBranching(CLI::App* app, Context* context) {
  AddFork(app, context);
  AddRollback(app, context);
  AddCheckpoint(app, context);
}

}  // namespace smt::cli
