// smt_model: looks at, checks, makes and runs model folders, without a server.
#include <CLI/CLI.hpp>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <exception>
#include <functional>
#include <new>

#include "absl/strings/str_join.h"
#include "model/base/cli_args.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/import/presets.h"
#include "model/tools/commands.h"

namespace {

using smt::StrCat;
using smt::fields::ShowValue;
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

// Checks the text of a value, which CLI11 would bend into the nearest number it can hold.
CLI::Validator Number(std::string_view allowed, bool (*fits)(const std::string&)) {
  return CLI::Validator(
      [=](std::string& text) { return fits(text) ? "" : StrCat("is \"", ShowValue(text), "\", must be ", allowed); },
      "");
}
template <typename T>
bool Reads(const std::string& text) {
  T value;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}
CLI::Validator Integer() { return Number("an integer of at most 64 bits", &Reads<int64_t>); }
CLI::Validator Seed() { return Number("an integer in [0, 18446744073709551615]", &Reads<uint64_t>); }
CLI::Validator Real() { return Number("a number", &Reads<double>); }
CLI::Validator Path() {
  return CLI::Validator([](std::string& text) { return text.empty() ? "is empty, must be a path" : ""; }, "");
}

// One sentence. CLI11 tells of a validator's refusal as "--flag: is ...".
std::string Sentence(const CLI::ParseError& error, const CLI::App& app, const std::vector<std::string>& arguments) {
  const bool has_command = !app.get_subcommands().empty();
  if (!has_command && !arguments.empty() && !arguments.back().starts_with("-")) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands(nullptr)) names.push_back(command->get_name());
    return StrCat("\"", ShowValue(arguments.back()), "\" is not a command; there are ", absl::StrJoin(names, ", "));
  }
  std::string text = error.what();
  if (const size_t at = text.find(": is "); at != std::string::npos) text.erase(at, 1);
  const std::string command = has_command ? " " + app.get_subcommands().front()->get_name() : "";
  return StrCat(text, "; see smt_model", command, " --help");
}

using Action = std::function<absl::Status()>;

void AddModelDir(CLI::App* command, std::string& model_dir) {
  command->add_option("--model_dir", model_dir, "Model folder: config.json, model.safetensors, vocab.json, merges.txt")
      ->check(Path())
      ->required();
}

void AddDevice(CLI::App* command, std::string& device, std::string& dtype) {
  command->add_option("--device", device, "auto, cpu, cuda or cuda:N")->capture_default_str();
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
  command->add_option("--fixture", o.fixture, "Fixture file")->check(Path())->required();
  AddDevice(command, o.device, o.dtype);
  command->add_flag("--json", o.json, "One JSON object instead of a table");
  command->callback([&] { action = [&] { return RunVerify(o); }; });
}

void AddForward(CLI::App& app, ForwardCommandOptions& o, Action& action) {
  CLI::App* command = app.add_subcommand("forward", "Runs a model over given ids and writes what it computed");
  AddModelDir(command, o.model_dir);
  command->add_option("--ids", o.ids, "Safetensors file with `input_ids`, I32 or I64, [L] or [1, L]")
      ->check(Path())
      ->required();
  command
      ->add_option("--out", o.out,
                   "Safetensors file to write: logits [L, V], ssm_outputs [writes, D], pool_weights [writes, W], F32")
      ->check(Path())
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
  command->add_option("--max_tokens", o.max_tokens, "Ids to generate at most")->check(Integer())->capture_default_str();
  command->add_option("--temperature", o.temperature, "0 is greedy")->check(Real())->capture_default_str();
  command->add_option("--top_k", o.top_k, "Keep the k likeliest; 0: all")->check(Integer())->capture_default_str();
  command->add_option("--top_p", o.top_p, "Keep the likeliest with this sum, (0, 1]")
      ->check(Real())
      ->capture_default_str();
  command->add_option("--min_p", o.min_p, "Keep those at least this fraction of the likeliest, [0, 1]")
      ->check(Real())
      ->capture_default_str();
  command->add_option("--repetition_penalty", o.repetition_penalty, "> 0; 1: none")
      ->check(Real())
      ->capture_default_str();
  command->add_option("--seed", o.seed, "With the position, the whole of the randomness")
      ->check(Seed())
      ->capture_default_str();
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
      ->check(Path())
      ->required();
  command->add_option("--mamba_dir", o.mamba_dir, "Hugging Face Mamba folder of the same width")
      ->check(Path())
      ->required();
  command->add_option("--out", o.out, "Model folder to write; must be empty or new")->check(Path())->required();
  command->add_option("--n_ssm_outputs", o.n, "Memory slots of the window")->check(Integer())->capture_default_str();
  command->add_option("--m_input_tokens", o.m, "Token slots of the window")->check(Integer())->capture_default_str();
  command->add_option("--stride", o.s, "Tokens between writes")->check(Integer())->capture_default_str();
  command->add_option("--window_policy", o.window_policy, "hop or slide")->capture_default_str();
  command->add_option("--pool_scope", o.pool_scope, "window or tokens")->capture_default_str();
  command->add_option("--dtype", o.dtype, "Of the matrices: keep, float32 or bfloat16")->capture_default_str();
  command->add_option("--seed", o.seed, "Of the pooling, the one part that neither folder has")
      ->check(Seed())
      ->capture_default_str();
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
  command->add_option("--out,--model_dir", o.out, "Model folder to write; must be empty or new")
      ->check(Path())
      ->required();
  command->add_option("--seed", o.seed, "Of the weights")->check(Seed())->capture_default_str();
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
  const std::vector<std::string> arguments = smt::CliArguments(argc, argv);
  try {
    app.parse(std::vector<std::string>(arguments));
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help
    std::fprintf(stderr, "smt_model: %s\n", Sentence(e, app, arguments).c_str());
    return 2;
  }
  absl::Status status;
  try {
    status = action();
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError("not enough memory for this model");
  } catch (const std::exception& e) {
    // Device faults come as exceptions from the runners.
    status = absl::InternalError(e.what());
  }
  if (std::fflush(stdout) != 0 && status.ok()) status = absl::UnavailableError("cannot write to stdout");
  if (!status.ok()) std::fprintf(stderr, "smt_model: %s\n", std::string(status.message()).c_str());
  return ExitCode(status);
}
