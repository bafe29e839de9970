// smt generate: streams to the terminal. Text goes to stdout as it comes; where the session stands goes to stderr.
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/interrupt.h"

namespace smt::cli {
namespace {

struct GenerateFlags {
  std::string prompt, ids, session, request_id, durability, on_disconnect, after_digest;
  bool create = true, go_on = false, resume = false, wait = false, ignore_eos = false, echo = false,
       parse_special = false, quiet = false;
  float temperature = 1, top_p = 1, min_p = 0, repetition = 1, presence = 0, frequency = 0;
  int32_t top_k = 0, logprobs = -1, prompt_logprobs = -1, priority = 0;
  int64_t seed = 0, max_tokens = 0, min_tokens = 0, expected_position = 0, after_position = 0;
  double max_duration = 0, patience = 0;
  std::vector<std::string> stop, bias;
  std::vector<int32_t> stop_tokens;
};

// The end of a session's position line: "session story at position 128".
std::string Where(const std::string& session, int64_t position) {
  return session.empty() ? absl::StrCat("position ", position)
                         : absl::StrCat("session ", session.substr(session.find('/') + 1), " at position ", position);
}

std::string NewRequestId() {
  std::random_device random;
  return absl::StrFormat("cli-%08x%08x", random(), random());
}

bool ParseBias(const std::string& text, v1::LogitBias* bias) {
  int id = 0;
  float value = 0;
  char rest = 0;
  if (std::sscanf(text.c_str(), "%d=%f%c", &id, &value, &rest) != 2) return false;
  bias->set_token_id(id);
  bias->set_bias(value);
  return true;
}

class Printer {
 public:
  Printer(bool json, bool quiet) : json_(json), quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

  void On(const v1::GenerationEvent& event) {
    if (json_) PrintJson(event);
    switch (event.event_case()) {
      case v1::GenerationEvent::kStarted:
        session_ = event.started().session();
        if (const int64_t begin = event.started().start_position() + event.started().prompt_tokens();
            begin >= position_) {
          position_ = begin;
          digest_ = event.started().digest();
        }
        break;
      case v1::GenerationEvent::kProgress:
        Progress(event.progress());
        break;
      case v1::GenerationEvent::kPromptLogprobs:
        break;
      case v1::GenerationEvent::kChunk:
        Chunk(event.chunk());
        break;
      case v1::GenerationEvent::kFinished:
        Finished(event.finished());
        break;
      case v1::GenerationEvent::EVENT_NOT_SET:
        break;
    }
  }

  // What the reader has of a stream that goes on.
  void StartAt(int64_t position, const std::string& digest) {
    position_ = position;
    digest_ = digest;
  }
  const std::string& session() const { return session_; }
  const std::string& digest() const { return digest_; }  // at position(); empty: not known
  int64_t position() const { return position_; }
  bool finished() const { return finished_; }
  bool cancelled() const { return cancelled_; }
  void EndLine() {
    if (!json_ && !at_line_start_) std::fputc('\n', stdout);
    at_line_start_ = true;
    std::fflush(stdout);
  }

 private:
  void Progress(const v1::GenerationProgress& progress) {
    if (quiet_ || json_ || progress.total_tokens() == 0) return;
    absl::FPrintF(stderr, "%sreading the prompt: %d of %d tokens (%d %%)%s", terminal_ ? "\r" : "",
                  progress.ingested_tokens(), progress.total_tokens(),
                  100 * progress.ingested_tokens() / progress.total_tokens(), terminal_ ? " " : "\n");
    progress_shown_ = terminal_;
  }

  void Chunk(const v1::GenerationChunk& chunk) {
    if (!chunk.echo()) {
      position_ = chunk.position();
      digest_ = chunk.digest();
    }
    if (json_) return;
    if (progress_shown_) absl::FPrintF(stderr, "\r\033[K");
    progress_shown_ = false;
    std::fwrite(chunk.text().data(), 1, chunk.text().size(), stdout);
    if (!chunk.text().empty()) at_line_start_ = chunk.text().back() == '\n';
    std::fflush(stdout);
  }

  void Finished(const v1::GenerationFinished& finished) {
    position_ = finished.position();
    finished_ = true;
    cancelled_ = finished.reason() == v1::FINISH_REASON_CANCELLED;
    EndLine();
    if (quiet_ || json_) return;
    std::string reason = v1::FinishReason_Name(finished.reason()).substr(sizeof("FINISH_REASON_") - 1);
    for (char& c : reason) c = c == '_' ? ' ' : static_cast<char>(std::tolower(c));
    const double decode = static_cast<double>(finished.timings().decode_time().seconds()) +
                          1e-9 * finished.timings().decode_time().nanos();
    const auto generated = finished.usage().generated_tokens();
    std::string rate;
    if (generated > 1 && decode > 0) rate = absl::StrFormat(", %.0f tokens/s", static_cast<double>(generated) / decode);
    absl::FPrintF(stderr, "[%s: %d prompt + %d generated tokens%s; %s]\n", reason, finished.usage().prompt_tokens(),
                  generated, rate, Where(session_, position_));
  }

  const bool json_, quiet_, terminal_;
  bool at_line_start_ = true, progress_shown_ = false, finished_ = false, cancelled_ = false;
  std::string session_, digest_;
  int64_t position_ = 0;
};

// How to get the rest of a stream that the server, or the way to it, broke off.
void ShowResume(const v1::GenerationSpec& spec, const Printer& printer, const client::Error& error) {
  const bool broke_off = error.code == grpc::StatusCode::UNAVAILABLE || error.code == grpc::StatusCode::CANCELLED ||
                         error.code == grpc::StatusCode::DEADLINE_EXCEEDED;
  if (!broke_off || printer.digest().empty() || spec.request_id().empty()) return;
  absl::FPrintF(stderr,
                "smt: for the rest: smt generate --resume --session=%s --request_id=%s --after_position=%d "
                "--after_digest=%s\n",
                printer.session().substr(printer.session().find('/') + 1), spec.request_id(), printer.position(),
                absl::Base64Escape(printer.digest()));
}

// The end of the prompt, where nobody has said what they have.
client::Error FirstPosition(client::Client& client, v1::ResumeGenerateRequest* resume) {
  v1::Generation generation;
  const client::Error error = client.GetGeneration(resume->session(), resume->request_id(), &generation);
  if (error.ok()) resume->set_after_position(generation.start_position() + generation.prompt_tokens());
  return error;
}

// With `resume` the rest of that request, which is the one that `spec` names.
int Run(const Context& context, const GenerateFlags& flags, v1::GenerationSpec spec,
        std::optional<v1::ResumeGenerateRequest> resume) {
  if (!spec.session().empty() && spec.request_id().empty()) spec.set_request_id(NewRequestId());
  Interrupt::Block();
  client::Client client(context.options);
  grpc::ClientContext call;
  client::StreamStop stop;
  Printer printer(context.json, flags.quiet);
  client::Error error;
  bool interrupted = false;
  {
    // With a session the server is told to end the request, so that the stream closes with its position; without one,
    // or when that does not work, the call is dropped.
    Interrupt interrupt([&] {
      if (spec.session().empty() || !client.CancelGeneration(spec.session(), spec.request_id(), nullptr).ok()) {
        call.TryCancel();
        stop.Stop();
      }
    });
    const auto print = [&](const v1::GenerationEvent& event) {
      printer.On(event);
      return true;
    };
    if (resume) {
      if (resume->after_position() == 0) error = FirstPosition(client, &*resume);
      printer.StartAt(resume->after_position(), resume->after_digest());
      if (error.ok()) error = client.ResumeGenerate(*resume, print, &call);
    } else if (flags.patience > 0) {
      error = client.StreamThroughRestarts(spec, absl::Seconds(flags.patience), print, &stop);
    } else {
      error = client.StreamGenerate(spec, print, &call);
    }
    interrupted = interrupt.happened();
  }
  printer.EndLine();
  if (interrupted) {
    if (printer.finished()) {
      absl::FPrintF(stderr, "smt: cancelled; %s\n", Where(printer.session(), printer.position()));
      return 130;
    }
    v1::Session session;
    if (!spec.session().empty() && client.GetSession(spec.session(), &session).ok()) {
      absl::FPrintF(stderr, "smt: cancelled; %s\n", Where(session.name(), session.position()));
    } else {
      absl::FPrintF(stderr, "smt: cancelled\n");
    }
    return 130;
  }
  if (!error.ok()) {
    const int code = Fail(error);
    if (printer.position() > 0 && !printer.session().empty()) {
      absl::FPrintF(stderr, "smt: what was received ends with %s\n", Where(printer.session(), printer.position()));
      ShowResume(spec, printer, error);
    }
    return code;
  }
  return printer.cancelled() ? 130 : 0;
}

}  // namespace

void AddGenerate(CLI::App* app, Context* context) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* c = app->add_subcommand("generate", "Stream generated text to the terminal");
  auto* prompt = c->add_option("--prompt,-p", flags->prompt,
                               "The text to continue; without it stdin is read when it is no terminal");
  auto* ids = c->add_option("--ids", flags->ids, "The prompt as a JSON array of token ids")->excludes(prompt);
  auto* go_on = c->add_flag("--continue", flags->go_on, "No prompt: go on from where the session stands")
                    ->excludes(prompt)
                    ->excludes(ids);
  auto* resume = c->add_flag("--resume", flags->resume,
                             "The rest of a request that broke off: with --session, --request_id and what is there")
                     ->excludes(prompt)
                     ->excludes(ids)
                     ->excludes(go_on);
  auto* after = c->add_option("--after_position", flags->after_position,
                              "With --resume: position of the last token that is there. Default: the prompt's last")
                    ->check(CLI::Range(int64_t{1}, INT64_MAX))
                    ->needs(resume);
  auto* digest = c->add_option("--after_digest", flags->after_digest,
                               "With it: the digest there, as --json prints it; another text is refused")
                     ->needs(after);
  auto* session = c->add_option("--session,-s", flags->session,
                                "Session to continue; made when it does not exist. Default: none is kept");
  c->add_flag("--create,!--no-create", flags->create, "Make the session when it does not exist (default: yes)");
  auto* request_id =
      c->add_option("--request_id", flags->request_id, "A retry with the same id replays the outcome. Default: drawn");
  resume->needs(session)->needs(request_id);
  auto* expected =
      c->add_option("--expected_position", flags->expected_position, "Fail unless the session stands there");
  c->add_flag("--wait", flags->wait, "Wait for the session's present writer instead of failing");
  auto* temperature = c->add_option("--temperature,-t", flags->temperature, "0 to 100; 0 is greedy (default: 1)");
  c->add_option("--top_k", flags->top_k, "Keep the k likeliest ids; 0 keeps all (default)");
  auto* top_p =
      c->add_option("--top_p", flags->top_p, "Keep the likeliest ids up to this probability, > 0 to 1 (default: 1)");
  c->add_option("--min_p", flags->min_p,
                "Keep ids at least this likely relative to the likeliest, 0 to 1 (default: 0)");
  auto* repetition = c->add_option("--repetition_penalty", flags->repetition, "> 0 to 10 (default: 1)");
  c->add_option("--presence_penalty", flags->presence, "-2 to 2 (default: 0)");
  c->add_option("--frequency_penalty", flags->frequency, "-2 to 2 (default: 0)");
  c->add_option("--logit_bias", flags->bias, "ID=BIAS, -100 to 100; may be repeated");
  auto* seed = c->add_option("--seed", flags->seed, "With it the same text comes again. Default: drawn by the server");
  auto* max_tokens =
      c->add_option("--max_tokens,-n", flags->max_tokens, "Most tokens to generate; 0 only reads the prompt");
  c->add_option("--min_tokens", flags->min_tokens, "No stop token before that many (default: 0)");
  c->add_option("--stop", flags->stop, "Text that ends the generation and is not shown; may be repeated");
  c->add_option("--stop_token_id", flags->stop_tokens, "Token that ends the generation; may be repeated");
  c->add_flag("--ignore_eos", flags->ignore_eos, "Go on after the end-of-text token");
  auto* max_duration = c->add_option("--max_duration", flags->max_duration, "Seconds to generate at most");
  c->add_flag("--echo", flags->echo, "Show the prompt too");
  c->add_flag("--parse_special_tokens", flags->parse_special,
              "Special tokens spelled out in the prompt become the token");
  auto* logprobs = c->add_option("--logprobs", flags->logprobs,
                                 "Log-probabilities with so many alternatives, 0 to 20 (with --json)");
  auto* prompt_logprobs =
      c->add_option("--prompt_logprobs", flags->prompt_logprobs, "The same for the prompt (with --json)");
  c->add_option("--priority", flags->priority, "-100 to 100 (default: 0)");
  c->add_option("--durability", flags->durability, "When tokens are on disk: none, turn (default) or token")
      ->check(CLI::IsMember({"none", "turn", "token"}));
  c->add_option("--on_disconnect", flags->on_disconnect,
                "When this client vanishes: park (default), cancel or continue")
      ->check(CLI::IsMember({"park", "cancel", "continue"}));
  c->add_option("--patience", flags->patience,
                "Go on by itself when the server goes away, for so many seconds without news, 0 to 86400 (default: 0)")
      ->check(CLI::Range(0.0, 86400.0))
      ->needs(session);
  auto* quiet = c->add_flag("--quiet,-q", flags->quiet, "No progress and no closing line on stderr");
  c->footer(
      "Examples:\n"
      "  smt generate --session=tale --prompt='Once upon a time' --max_tokens=200\n"
      "  smt generate --session=tale --continue --patience=60   goes on, through restarts of the server\n"
      "  smt generate --session=tale --request_id=r1 --resume   all that r1 generates, after it broke off");
  c->callback([=] {
    context->run = [=]() -> int {
      v1::GenerationSpec spec;
      if (*resume) {
        for (const CLI::Option* given : c->get_options()) {
          if (given->count() == 0 ||
              std::set<const CLI::Option*>{resume, after, digest, session, request_id, quiet}.count(given) > 0)
            continue;
          absl::FPrintF(stderr, "smt: --resume goes on with the request as it was: leave out %s\n", given->get_name());
          return 2;
        }
        spec.set_session(client::SessionName(flags->session));
        spec.set_request_id(flags->request_id);
        v1::ResumeGenerateRequest rest;
        rest.set_session(spec.session());
        rest.set_request_id(spec.request_id());
        rest.set_after_position(flags->after_position);
        if (!absl::Base64Unescape(flags->after_digest, rest.mutable_after_digest())) {
          absl::FPrintF(stderr, "smt: --after_digest=%s: expected base64, as --json prints it\n", flags->after_digest);
          return 2;
        }
        return Run(*context, *flags, std::move(spec), std::move(rest));
      }
      if (*ids) {
        std::vector<int32_t> values;
        if (!ParseIds(flags->ids, &values)) {
          absl::FPrintF(stderr, "smt: --ids: expected a JSON array of integers\n");
          return 2;
        }
        spec.mutable_token_ids()->mutable_ids()->Assign(values.begin(), values.end());
      } else if (*prompt) {
        spec.set_text_bytes(flags->prompt);
      } else if (!*go_on) {
        if (isatty(STDIN_FILENO) != 0) {
          absl::FPrintF(stderr, "smt: no prompt: give --prompt, text on stdin, or --continue to go on without one\n");
          return 2;
        }
        spec.set_text_bytes(ReadStdin());
      }
      spec.set_parse_special_tokens(flags->parse_special);
      spec.set_session(client::SessionName(flags->session));
      spec.set_create_session(!flags->session.empty() && flags->create);
      spec.set_request_id(flags->request_id);
      if (*expected) spec.set_expected_position(flags->expected_position);
      spec.set_wait_for_session(flags->wait);
      auto* sampling = spec.mutable_sampling();
      if (*temperature) sampling->set_temperature(flags->temperature);
      sampling->set_top_k(flags->top_k);
      if (*top_p) sampling->set_top_p(flags->top_p);
      sampling->set_min_p(flags->min_p);
      if (*repetition) sampling->set_repetition_penalty(flags->repetition);
      sampling->set_presence_penalty(flags->presence);
      sampling->set_frequency_penalty(flags->frequency);
      for (const std::string& text : flags->bias) {
        if (!ParseBias(text, sampling->add_logit_bias())) {
          absl::FPrintF(stderr, "smt: --logit_bias=%s: expected ID=BIAS, as in 42=-1.5\n", text);
          return 2;
        }
      }
      if (*seed) sampling->set_seed(flags->seed);
      auto* stopping = spec.mutable_stopping();
      if (*max_tokens) stopping->set_max_tokens(flags->max_tokens);
      stopping->set_min_tokens(flags->min_tokens);
      for (const std::string& text : flags->stop) stopping->add_stop_strings(text);
      stopping->mutable_stop_token_ids()->Assign(flags->stop_tokens.begin(), flags->stop_tokens.end());
      stopping->set_ignore_eos(flags->ignore_eos);
      if (*max_duration) {
        const auto duration = absl::ToTimespec(absl::Seconds(flags->max_duration));
        spec.mutable_max_duration()->set_seconds(duration.tv_sec);
        spec.mutable_max_duration()->set_nanos(static_cast<int32_t>(duration.tv_nsec));
      }
      spec.mutable_output()->set_echo(flags->echo);
      if (*logprobs) spec.mutable_output()->set_top_logprobs(flags->logprobs);
      if (*prompt_logprobs) spec.mutable_output()->set_prompt_logprobs(flags->prompt_logprobs);
      spec.set_priority(flags->priority);
      if (flags->durability == "none") spec.set_durability(v1::DURABILITY_NONE);
      if (flags->durability == "turn") spec.set_durability(v1::DURABILITY_TURN);
      if (flags->durability == "token") spec.set_durability(v1::DURABILITY_TOKEN);
      if (flags->on_disconnect == "park") spec.set_on_disconnect(v1::DISCONNECT_POLICY_PARK);
      if (flags->on_disconnect == "cancel") spec.set_on_disconnect(v1::DISCONNECT_POLICY_CANCEL);
      if (flags->on_disconnect == "continue") spec.set_on_disconnect(v1::DISCONNECT_POLICY_CONTINUE);
      return Run(*context, *flags, std::move(spec), std::nullopt);
    };
  });
}

}  // namespace smt::cli
