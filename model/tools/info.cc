// smt_model info.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/checkpoint.h"
#include "model/cost_model.h"
#include "model/import/model_folder.h"
#include "model/parameter_statistics.h"
#include "model/state_layout.h"
#include "model/tools/commands.h"

namespace smt::tools {
namespace {

double BytesPerWeight(const Checkpoint& checkpoint) {
  double bytes = 0, values = 0;
  for (const Checkpoint::Tensor& tensor : checkpoint.tensors()) {
    bytes += static_cast<double>(tensor.bytes.size());
    values += static_cast<double>(tensor.numel());
  }
  return bytes / values;
}

nlohmann::ordered_json CostJson(const TokenCost& cost) {
  return {{"multiply_adds", cost.multiply_adds},
          {"weight_bytes", cost.weight_bytes},
          {"session_bytes", cost.session_bytes}};
}

void PrintJson(const Checkpoint& checkpoint, const std::vector<std::string>& warnings) {
  const StrideHybridConfig& config = checkpoint.config();
  const ParameterStatistics parameters = CountParameters(config);
  const CostModel cost(config, BytesPerWeight(checkpoint));
  nlohmann::ordered_json root;
  root["fingerprint"] = checkpoint.Fingerprint();
  root["config"] = nlohmann::ordered_json::parse(config.ToJson());
  for (const auto& [part, count] : parameters.by_part) root["parameters"][std::string(Name(part))] = count;
  root["parameters"]["total"] = parameters.total();
  root["tensors"] = parameters.tensors;
  root["state_bytes"] = StateLayout(config).bytes();
  root["cost_per_token"] = {{"ingest", CostJson(cost.Ingest())},
                            {"hop", CostJson(cost.Hop())},
                            {"slide", CostJson(cost.Slide())},
                            {"gpt2_cache_of_4096", CostJson(cost.CachedGpt2(4096))}};
  root["warnings"] = warnings;
  std::printf("%s\n", root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

absl::Status CheckTokenizer(const std::string& model_dir, const StrideHybridConfig& config) {
  ASSIGN_OR_RETURN(const auto files, FindTokenizerFiles(model_dir, config.vocab_size));
  return files ? absl::OkStatus() : absl::NotFoundError("it has no vocab.json and merges.txt");
}

}  // namespace

absl::Status RunInfo(const InfoOptions& options) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(options.model_dir));
  std::vector<std::string> warnings = checkpoint->warnings();
  if (options.check_values) {
    const std::vector<std::string> found = checkpoint->ValuesNotFinite();
    warnings.insert(warnings.end(), found.begin(), found.end());
  }
  if (const absl::Status fits = CheckTokenizer(options.model_dir, checkpoint->config()); !fits.ok()) {
    warnings.push_back(StrCat("the model takes and gives ids only: ", fits.message()));
  }
  if (options.json) {
    PrintJson(*checkpoint, warnings);
    return absl::OkStatus();
  }
  std::printf("%s\n%s\nFingerprint %s\n", checkpoint->config().Summary().c_str(),
              CostModel(checkpoint->config(), BytesPerWeight(*checkpoint)).Report().c_str(),
              checkpoint->Fingerprint().c_str());
  for (const std::string& warning : warnings) std::printf("Warning: %s\n", warning.c_str());
  return absl::OkStatus();
}

}  // namespace smt::tools
