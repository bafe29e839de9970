// smt_model: looks at, checks, makes and runs model folders, without a server.
#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>

#include "model/base/cli_args.h"
#include "model/import/presets.h"
#include "model/tools/commands.h"

namespace {

using smt::tools::ForwardCommandOptions;
using smt::tools::GenerateOptions;
using smt::tools::ImportCommandOptions;
using smt::tools::InfoOptions;
using smt::tools::InitCommandOptions;
using smt::tools::TokenizeOptions;
using smt::tools::VerifyOptions;

constexpr char kFooter[] =
    "Exit codes: 0 done; 1 verify found a difference over its tolerance; 2 a bad flag or bad input; 3 a file or "
    "folder\n"
    "that is not there; 4 a damaged file; 5 anything else (no permission, no such device, disk full).";

int ExitCode(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return 0;
    case absl::StatusCode::kAborted:
      return 1;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 2;
    case absl::StatusCode::kNotFound:
      return 3;
    case absl::StatusCode::kDataLoss:
      return 4;
    default:
      return 5;
  }
}

using Action = std::function<absl::Status()>;

void AddModelDir(CLI::App* command, std::string& model_dir) {
  command->add_option("--model_dir", model_dir, "Model folder: config.json, model.safetensors, vocab.json, merges.txt")
      ->required();
}

void AddDevice(CLI::App* command, std::string& device, std::string& dtype) {
  command->add_option("--device", device, "cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--dtype", dtype, "float32 or bfloat16: of the window; the memory path is float32 always")
      ->capture_default_str();
}

void AddInfo(CLI::App& app, InfoOptions& o, Action& action) {
  CLI::App* command = app.add_subcommand("info", "Shapes, parameters, cost per token, fingerprint of a model");
  AddModelDir(command, o.model_dir);
  command->add_flag("--json", o.json, "One JSON object instead of text");
  command->add_flag("--check_values", o.check_values, "Read every weight and warn of values that are not finite");
  command->callback([&] { action = [&] { return RunInfo(o); }; });
}

void AddVerify(CLI::App& app, VerifyOptions& o, Action& action) {
  CLI::App* command = app.add_subcommand(
      "verify",
      "Compares a model with a fixture: logits within 1e-3, SSM outputs and pool weights within 1e-4, state within\n"
      "1e-4 + 1e-5 |x|, each greedy id the argmax or within 2e-3 of it. The fixture (safetensors) has input_ids and "
      "any of\n"
      "logits_hop, logits_slide, greedy_hop, greedy_slide, ssm_outputs, pool_weights, ssm_conv.I, ssm_state.I");
  AddModelDir(command, o.model_dir);
  command->add_option("--fixture", o.fixture, "Fixture file")->required();
  AddDevice(command, o.device, o.dtype);
  command->add_flag("--json", o.json, "One JSON object instead of a table");
  command->callback([&] { action = [&] { return RunVerify(o); }; });
}

void AddForward(CLI::App& app, ForwardCommandOptions& o, Action& action) {
  CLI::App* command = app.add_subcommand("forward", "Runs a model over given ids and writes what it computed");
  AddModelDir(command, o.model_dir);
  command->add_option("--ids", o.ids, "Safetensors file with `input_ids`, I32 or I64, [L] or [1, L]")->required();
  command
      ->add_option("--out", o.out,
                   "Safetensors file to write: logits [L, V], ssm_outputs [writes, D], pool_weights [writes, W], F32")
      ->required();
  command->add_option("--window_policy", o.window_policy, "hop or slide; default: the model's");
  command->add_flag("--stepwise", o.stepwise, "Token by token through the serving path, not all windows in parallel");
  AddDevice(command, o.device, o.dtype);
  command->callback([&] { action = [&] { return RunForward(o); }; });
}

void AddGenerate(CLI::App& app, GenerateOptions& o, Action& action) {
  CLI::App* command = app.add_subcommand("generate", "Continues a text on stdout");
  AddModelDir(command, o.model_dir);
  auto* prompt = command->add_option("--prompt", o.prompt, "Text to continue; default: stdin");
  command->add_option("--prompt_ids", o.prompt_ids, "JSON array of ids instead of a text")->excludes(prompt);
  command->add_option("--max_tokens", o.max_tokens, "Ids to generate at most")->capture_default_str();
  command->add_option("--temperature", o.temperature, "0 is greedy")->capture_default_str();
  command->add_option("--top_k", o.top_k, "Keep the k likeliest; 0: all")->capture_default_str();
  command->add_option("--top_p", o.top_p, "Keep the likeliest with this sum, (0, 1]")->capture_default_str();
  command->add_option("--min_p", o.min_p, "Keep those at least this fraction of the likeliest, [0, 1]")
      ->capture_default_str();
  command->add_option("--repetition_penalty", o.repetition_penalty, "> 0; 1: none")->capture_default_str();
  command->add_option("--seed", o.seed, "With the position, the whole of the randomness")->capture_default_str();
  command->add_flag("--ignore_eos", o.ignore_eos, "Do not stop at the model's end-of-text id");
  command->add_flag("--print_ids", o.print_ids, "A JSON array of the generated ids instead of text");
  command->add_option("--window_policy", o.window_policy, "hop or slide; default: the model's");
  AddDevice(command, o.device, o.dtype);
  command->callback([&] { action = [&] { return RunGenerate(o); }; });
}

void AddImport(CLI::App& app, ImportCommandOptions& o, Action& action) {
  CLI::App* command = app.add_subcommand("import", "Makes a model folder from a GPT-2 and a Mamba folder of the hub");
  command
      ->add_option("--gpt2_dir", o.gpt2_dir,
                   "Hugging Face GPT-2 folder: config.json, model.safetensors (or its index), vocab.json, merges.txt")
      ->required();
  command->add_option("--mamba_dir", o.mamba_dir, "Hugging Face Mamba folder of the same width")->required();
  command->add_option("--out", o.out, "Model folder to write; must be empty or new")->required();
  command->add_option("--n_ssm_outputs", o.n, "Memory slots of the window")->capture_default_str();
  command->add_option("--m_input_tokens", o.m, "Token slots of the window")->capture_default_str();
  command->add_option("--stride", o.s, "Tokens between writes")->capture_default_str();
  command->add_option("--window_policy", o.window_policy, "hop or slide")->capture_default_str();
  command->add_option("--pool_scope", o.pool_scope, "window or tokens")->capture_default_str();
  command->add_option("--dtype", o.dtype, "Of the matrices: keep, float32 or bfloat16")->capture_default_str();
  command->add_option("--seed", o.seed, "Of the pooling, the one part that neither folder has")->capture_default_str();
  command->callback([&] { action = [&] { return RunImport(o); }; });
}

void AddInit(CLI::App& app, InitCommandOptions& o, Action& action) {
  std::string presets = "One of:";
  for (const smt::Preset& preset : smt::Presets()) {
    presets += "\n" + std::string(preset.name) + ": " + std::string(preset.description);
  }
  CLI::App* command = app.add_subcommand("init", "Makes a model folder with random weights");
  auto* preset = command->add_option("--preset", o.preset, presets);
  command->add_option("--config", o.config, "A config.json of your own instead of a preset")->excludes(preset);
  command->add_option("--out,--model_dir", o.out, "Model folder to write; must be empty or new")->required();
  command->add_option("--seed", o.seed, "Of the weights")->capture_default_str();
  command->add_option("--dtype", o.dtype, "Of the matrices: float32 or bfloat16")->capture_default_str();
  command->add_option(
      "--tokenizer_dir", o.tokenizer_dir,
      "Folder with vocab.json and merges.txt to copy. Byte presets bring their own; without these files a "
      "model takes and gives ids only");
  command->callback([&] { action = [&] { return RunInit(o); }; });
}

void AddTokenize(CLI::App& app, TokenizeOptions& o, Action& action) {
  CLI::App* tokenize = app.add_subcommand("tokenize", "All of stdin is one text; prints one JSON array of ids");
  AddModelDir(tokenize, o.model_dir);
  tokenize->add_flag("--jsonl", o.jsonl, "Each line of stdin is a JSON string and gives one array");
  tokenize->add_flag("--parse_special", o.parse_special, "Special tokens spelled in the text become their ids");
  tokenize->callback([&] { action = [&] { return RunTokenize(o); }; });
  CLI::App* detokenize =
      app.add_subcommand("detokenize", "The inverse: a JSON array of ids on stdin, its bytes on stdout");
  AddModelDir(detokenize, o.model_dir);
  detokenize->add_flag("--jsonl", o.jsonl, "Each line of stdin is an array and gives one JSON string");
  detokenize->callback([&] { action = [&] { return RunDetokenize(o); }; });
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_DFL);
  CLI::App app("smt_model: tools for Stride Memory Transformer model folders");
  app.footer(kFooter);
  app.require_subcommand(1);
  InfoOptions info;
  VerifyOptions verify;
  ForwardCommandOptions forward;
  GenerateOptions generate;
  ImportCommandOptions import;
  InitCommandOptions init;
  TokenizeOptions tokenize;
  Action action;
  AddInfo(app, info, action);
  AddVerify(app, verify, action);
  AddForward(app, forward, action);
  AddGenerate(app, generate, action);
  AddImport(app, import, action);
  AddInit(app, init, action);
  AddTokenize(app, tokenize, action);
  try {
    app.parse(smt::CliArguments(argc, argv));
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  absl::Status status;
  try {
    status = action();
  } catch (const std::exception& e) {
    // Device faults and exhausted memory come as exceptions from the runners.
    status = absl::InternalError(e.what());
  }
  if (std::fflush(stdout) != 0 && status.ok()) status = absl::UnavailableError("cannot write to stdout");
  if (!status.ok()) std::fprintf(stderr, "smt_model: %s\n", std::string(status.message()).c_str());
  return ExitCode(status);
}
