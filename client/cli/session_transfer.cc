// smt session export|import|verify|repair|backup.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/interrupt.h"
#include "model/io/atomic_file.h"

namespace smt::cli {
namespace {

constexpr int kInterrupted = 130;
constexpr int kDamaged = 6;

struct TransferFlags {
  std::string session, checkpoint, file, id;
  double ttl = 0;
  std::vector<std::string> labels;
  bool yes = false;
};

// Where an export goes: a file that appears whole or not at all, or stdout.
class Output {
 public:
  // What went wrong, for people; empty: nothing.
  std::string Open(const std::string& path) {
    if (path == "-") return "";
    absl::StatusOr<AtomicFile> file = AtomicFile::Create(path);
    if (!file.ok()) return std::string(file.status().message());
    file_.emplace(*std::move(file));
    return "";
  }
  std::string Append(const std::string& data) {
    if (file_) return std::string(file_->Append(data).message());
    return std::fwrite(data.data(), 1, data.size(), stdout) == data.size() ? "" : "cannot write to stdout";
  }
  std::string Commit() {
    if (file_) return std::string(file_->Commit().message());
    return std::fflush(stdout) == 0 ? "" : "cannot write to stdout";
  }

 private:
  std::optional<AtomicFile> file_;
};

int FailLocally(const std::string& message) {
  absl::FPrintF(stderr, "smt: %s\n", message);
  return 1;
}

int Export(const Context& context, const TransferFlags& flags) {
  Interrupt::Block();
  client::Client client(context.options);
  v1::ExportSessionRequest request;
  request.set_name(client::SessionName(flags.session));
  if (!flags.checkpoint.empty()) request.set_checkpoint(request.name() + "/checkpoints/" + flags.checkpoint);
  Output output;
  if (const std::string problem = output.Open(flags.file); !problem.empty()) return FailLocally(problem);
  grpc::ClientContext call;
  Interrupt interrupt([&] { call.TryCancel(); });
  std::string problem;
  int64_t bytes = 0;
  const client::Error error = client.ExportSession(
      request,
      [&](const std::string& data, int64_t total_bytes) {
        bytes = total_bytes;
        problem = output.Append(data);
        return problem.empty();
      },
      &call);
  if (interrupt.happened()) return kInterrupted;
  if (problem.empty() && !error.ok()) return Fail(error);
  if (problem.empty()) problem = output.Commit();
  if (!problem.empty()) return FailLocally(problem);
  absl::FPrintF(stderr, "exported %s, %d bytes\n", request.name(), bytes);
  return 0;
}

int Import(const Context& context, const TransferFlags& flags, bool has_ttl) {
  v1::ImportSessionRequest first;
  first.set_session_id(flags.id);
  if (has_ttl) SetTtl(flags.ttl, first.mutable_session());
  if (!AddLabels(flags.labels, first.mutable_session())) return 2;
  const std::unique_ptr<FILE, int (*)(FILE*)> file(flags.file == "-" ? stdin : std::fopen(flags.file.c_str(), "rb"),
                                                   &std::fclose);
  if (file == nullptr) {
    std::perror(("smt: " + flags.file).c_str());
    return 2;
  }
  client::Client client(context.options);
  grpc::ClientContext call;
  v1::Session session;
  const client::Error error = client.ImportSession(
      first,
      [&] {
        std::string data(size_t{1} << 20, '\0');
        data.resize(std::fread(data.data(), 1, data.size(), file.get()));
        // The server would take a file that cannot be read to its end for a damaged one.
        if (std::ferror(file.get()) != 0) call.TryCancel();
        return data;
      },
      &session, &call);
  if (std::ferror(file.get()) != 0) return FailLocally(flags.file + ": cannot be read to its end");
  return PrintSession(context, error, session);
}

// "identical", "different", …
std::string ResultText(const v1::VerifySessionResponse& answer) {
  switch (answer.result()) {
    case v1::VERIFY_RESULT_IDENTICAL:
      return "identical: every state that is kept is what the log makes";
    case v1::VERIFY_RESULT_DIFFERENT:
      return absl::StrFormat("different: the state kept at position %d is not what the log makes",
                             answer.first_difference());
    case v1::VERIFY_RESULT_LOG_ONLY:
      return "log only: the log reads well; the states were made under other numerics and cannot be compared";
    default:
      return "the server gave no result";
  }
}

int Verify(const Context& context, const TransferFlags& flags) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  client::Client client(context.options);
  v1::VerifySessionResponse answer;
  const std::string name = client::SessionName(flags.session);
  const client::Error error = client.VerifySession(name, [&](const v1::VerifySessionResponse& message) {
    if (context.json) {
      PrintJson(message);
    } else if (message.result() == v1::VERIFY_RESULT_UNSPECIFIED && message.total_tokens() > 0) {
      absl::FPrintF(stderr, "%sverifying: %d of %d tokens (%d %%)%s", terminal ? "\r" : "", message.verified_tokens(),
                    message.total_tokens(), 100 * message.verified_tokens() / message.total_tokens(),
                    terminal ? " " : "\n");
    }
    answer = message;
  });
  if (terminal && !context.json) absl::FPrintF(stderr, "\r\033[K");
  if (!error.ok()) return Fail(error);
  if (!context.json) {
    absl::PrintF("%s\n  tokens       %d\n  result       %s\n  state        %s\n", name, answer.total_tokens(),
                 ResultText(answer), absl::BytesToHexString(answer.state_digest()));
  }
  const bool well = answer.result() == v1::VERIFY_RESULT_IDENTICAL || answer.result() == v1::VERIFY_RESULT_LOG_ONLY;
  return well ? 0 : 1;
}

// Whether the log reads well up to a checkpoint, or with none to the head: an export reads it all.
client::Error Read(client::Client& client, const std::string& session, const std::string& checkpoint) {
  v1::ExportSessionRequest request;
  request.set_name(session);
  request.set_checkpoint(checkpoint);
  return client.ExportSession(request, [](const std::string&, int64_t) { return true; });
}

// Newest first.
client::Error ListAllCheckpoints(client::Client& client, const std::string& session,
                                 std::vector<v1::Checkpoint>* checkpoints) {
  std::string page_token;
  do {
    const client::Error error = client.ListCheckpoints(session, 1000, page_token, checkpoints, &page_token);
    if (!error.ok()) return error;
  } while (!page_token.empty());
  std::sort(checkpoints->begin(), checkpoints->end(), [](const v1::Checkpoint& a, const v1::Checkpoint& b) {
    const auto key = [](const v1::Checkpoint& c) {
      return std::tuple(c.create_time().seconds(), c.create_time().nanos(), c.position());
    };
    return key(a) > key(b);
  });
  return {};
}

int GoBack(const Context& context, const TransferFlags& flags, client::Client& client, const v1::Session& session,
           const v1::Checkpoint& checkpoint) {
  absl::FPrintF(stderr,
                "The newest point that reads well is %s%s at position %d. The session stands at %d: going back loses "
                "%d tokens.\n",
                checkpoint.automatic() ? "the start of a turn, " : "", checkpoint.name(), checkpoint.position(),
                session.position(), std::max<int64_t>(session.position() - checkpoint.position(), 0));
  if (!flags.yes) {
    if (context.json) PrintJson(checkpoint);
    absl::FPrintF(stderr, "Nothing was changed; with --yes it goes back there.\n");
    return kDamaged;
  }
  v1::RollbackSessionRequest request;
  request.set_name(session.name());
  request.set_checkpoint(checkpoint.name());
  request.set_etag(session.etag());
  v1::Session repaired;
  const client::Error error = client.RollbackSession(request, &repaired);
  return PrintSession(context, error, repaired);
}

int Repair(const Context& context, const TransferFlags& flags) {
  client::Client client(context.options);
  v1::Session session;
  client::Error error = client.GetSession(client::SessionName(flags.session), &session);
  if (!error.ok()) return Fail(error);
  const client::Error damage = Read(client, session.name(), "");
  if (damage.ok()) {
    absl::FPrintF(stderr, "%s reads well up to its head at position %d: there is nothing to repair\n", session.name(),
                  session.position());
    return 0;
  }
  if (damage.code != grpc::StatusCode::DATA_LOSS) return Fail(damage);
  absl::FPrintF(stderr, "%s\n", client::Explain(damage));
  std::vector<v1::Checkpoint> checkpoints;
  error = ListAllCheckpoints(client, session.name(), &checkpoints);
  if (!error.ok()) return Fail(error);
  for (const v1::Checkpoint& checkpoint : checkpoints) {
    error = Read(client, session.name(), checkpoint.name());
    if (error.ok()) return GoBack(context, flags, client, session, checkpoint);
    if (error.code != grpc::StatusCode::DATA_LOSS && error.code != grpc::StatusCode::NOT_FOUND) return Fail(error);
  }
  absl::FPrintF(stderr, "smt: none of its %d checkpoints reads well either\n", checkpoints.size());
  return kDamaged;
}

int Backup(const Context& context, const TransferFlags& flags) {
  client::Client client(context.options);
  v1::BackupSessionsResponse backup;
  const client::Error error = client.BackupSessions(flags.id, &backup);
  if (!error.ok()) return Fail(error);
  if (context.json) {
    PrintJson(backup);
  } else {
    absl::PrintF("%s\n", backup.path());
    absl::FPrintF(stderr, "backed up all sessions, %d bytes\n", backup.total_bytes());
  }
  return 0;
}

}  // namespace

void AddSessionTransfer(CLI::App* sessions, Context* context) {
  auto flags = std::make_shared<TransferFlags>();

  CLI::App* to_file = sessions->add_subcommand("export", "Write a session, log and state, to a safetensors file");
  to_file->add_option("session", flags->session, "Its id")->required();
  to_file->add_option("file", flags->file, "The file, which appears whole or not at all; - is stdout")->required();
  to_file->add_option("--checkpoint", flags->checkpoint, "The id of one: the session as it was there. Default: now");
  to_file->callback([=] { context->run = [=] { return Export(*context, *flags); }; });

  CLI::App* from_file = sessions->add_subcommand("import", "Make a session of a file that export wrote");
  from_file->add_option("file", flags->file, "The file; - is stdin")->required();
  from_file->add_option("--id", flags->id, "Id of the new session; drawn by the server when left out");
  auto* ttl = from_file->add_option("--ttl", flags->ttl, "Seconds it is kept after its last use. Default: for ever");
  from_file->add_option("--label", flags->labels, "KEY=VALUE; may be repeated");
  from_file->callback([=] { context->run = [=] { return Import(*context, *flags, !ttl->empty()); }; });

  CLI::App* verify =
      sessions->add_subcommand("verify", "Absorb the log again and compare the states kept of it; 1 when one differs");
  verify->add_option("session", flags->session, "Its id")->required();
  verify->callback([=] { context->run = [=] { return Verify(*context, *flags); }; });

  CLI::App* repair = sessions->add_subcommand("repair",
                                              "Find the newest checkpoint of a damaged session that reads "
                                              "well, and with --yes go back to it");
  repair->add_option("session", flags->session, "Its id")->required();
  repair->add_flag("--yes", flags->yes, "Go back; without it nothing is changed");
  repair->callback([=] { context->run = [=] { return Repair(*context, *flags); }; });

  CLI::App* backup = sessions->add_subcommand(
      "backup", "Copy all sessions, as they are now, to a new folder of the server's --backup_dir while it serves");
  backup->add_option("name", flags->id, "Of the folder; made of the time when left out");
  backup->callback([=] { context->run = [=] { return Backup(*context, *flags); }; });
}

}  // namespace smt::cli
