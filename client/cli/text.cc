// smt score, tokenize and detokenize.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "nlohmann/json.hpp"

namespace smt::cli {
namespace {

struct TextFlags {
  std::string text, ids, session;
  int32_t top_logprobs = 0;
  bool parse_special = false, add_bos = false, skip_special = false, summary = false;
};

std::string TextOrStdin(const CLI::Option* option, const TextFlags& flags) {
  return *option ? flags.text : ReadStdin();
}

// The token as a person can read it on one line.
std::string Printable(const std::string& bytes) {
  return nlohmann::json(bytes).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

int Score(const Context& context, const TextFlags& flags, const v1::ScoreRequest& request) {
  client::Client client(context.options);
  std::vector<v1::TokenLogprob> logprobs;
  v1::ScoreSummary summary;
  const client::Error error = client.Score(request, &logprobs, &summary);
  if (!error.ok()) return Fail(error);
  for (const v1::TokenLogprob& logprob : logprobs) {
    if (flags.summary) break;
    if (context.json) {
      PrintJson(logprob);
    } else if (logprob.has_logprob()) {
      absl::PrintF("%10.4f  %6d  %s\n", logprob.logprob(), logprob.token_id(), Printable(logprob.token_bytes()));
    } else {
      absl::PrintF("%10s  %6d  %s\n", "-", logprob.token_id(), Printable(logprob.token_bytes()));
    }
  }
  if (context.json) {
    PrintJson(summary);
  } else {
    absl::PrintF("%d tokens, log-probability %.4f, perplexity %.3f\n", summary.scored_tokens(), summary.total_logprob(),
                 summary.perplexity());
  }
  return 0;
}

}  // namespace

void AddText(CLI::App* app, Context* context) {
  auto flags = std::make_shared<TextFlags>();

  CLI::App* score = app->add_subcommand("score", "Log-probability of each token of a text");
  auto* score_text = score->add_option("--text", flags->text, "The text; without it stdin is read");
  auto* score_ids = score->add_option("--ids", flags->ids, "A JSON array of token ids instead")->excludes(score_text);
  score->add_option("--session,-s", flags->session, "Score after this session (which is only read)");
  score->add_option("--top_logprobs", flags->top_logprobs, "Alternatives at each token, 0 to 20 (with --json)");
  score->add_flag("--parse_special_tokens", flags->parse_special, "Special tokens spelled out become the token");
  score->add_flag("--summary", flags->summary, "Only the last line");
  score->callback([=] {
    context->run = [=]() -> int {
      v1::ScoreRequest request;
      if (*score_ids) {
        std::vector<int32_t> ids;
        if (!ParseIds(flags->ids, &ids)) {
          absl::FPrintF(stderr, "smt: --ids: expected a JSON array of integers\n");
          return 2;
        }
        request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
      } else {
        request.set_text_bytes(TextOrStdin(score_text, *flags));
      }
      request.set_parse_special_tokens(flags->parse_special);
      request.set_session(client::SessionName(flags->session));
      request.set_top_logprobs(flags->top_logprobs);
      return Score(*context, *flags, request);
    };
  });

  CLI::App* tokenize = app->add_subcommand("tokenize", "Text to a JSON array of token ids");
  auto* tokenize_text = tokenize->add_option("--text", flags->text, "The text; without it stdin is read");
  tokenize->add_flag("--parse_special_tokens", flags->parse_special, "Special tokens spelled out become the token");
  tokenize->add_flag("--add_bos", flags->add_bos, "As a new session would begin");
  tokenize->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::TokenizeRequest request;
      request.set_text_bytes(TextOrStdin(tokenize_text, *flags));
      request.set_parse_special_tokens(flags->parse_special);
      request.set_add_bos(flags->add_bos);
      std::vector<int32_t> ids;
      const client::Error error = client.Tokenize(request, &ids);
      if (!error.ok()) return Fail(error);
      absl::PrintF("%s\n", nlohmann::json(ids).dump());
      return 0;
    };
  });

  CLI::App* detokenize = app->add_subcommand("detokenize", "A JSON array of token ids to text");
  auto* ids = detokenize->add_option("--ids", flags->ids, "The array; without it stdin is read");
  detokenize->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      std::vector<int32_t> values;
      if (!ParseIds(*ids ? flags->ids : ReadStdin(), &values)) {
        absl::FPrintF(stderr, "smt: expected a JSON array of integers\n");
        return 2;
      }
      v1::DetokenizeResponse response;
      const client::Error error = client.Detokenize(values, &response);
      if (!error.ok()) return Fail(error);
      if (context->json) {
        PrintJson(response);
      } else {
        std::fwrite(response.text_bytes().data(), 1, response.text_bytes().size(), stdout);
      }
      return 0;
    };
  });
}

}  // namespace smt::cli
