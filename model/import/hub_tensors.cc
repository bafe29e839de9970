#include "model/import/hub_tensors.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/config_json.h"

namespace smt {
namespace {

constexpr size_t kMaxIndexBytes = 64 << 20;

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

// Tensor name -> shard file name.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, fields::ReadSmallFile(path, kMaxIndexBytes));
  const nlohmann::json root = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object()) {
    return absl::InvalidArgumentError(StrCat(path, " is not an index: it must be a JSON object with \"weight_map\""));
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, file] : root["weight_map"].items()) {
    if (!file.is_string() || file.get_ref<const std::string&>().find('/') != std::string::npos) {
      return absl::InvalidArgumentError(StrCat(path, ": the shard of ", fields::ShowValue(name), " is ",
                                               fields::ShowValue(file.dump()), ", must be a file name in the folder"));
    }
    shards[name] = file.get<std::string>();
  }
  return shards;
}

}  // namespace

absl::StatusOr<HubTensors> HubTensors::Open(const std::string& dir) {
  HubTensors tensors;
  const std::string whole = dir + "/model.safetensors", index = whole + ".index.json";
  if (!Exists(index)) {
    if (!Exists(whole)) {
      return absl::NotFoundError(StrCat(
          dir, " has no model.safetensors",
          Exists(dir + "/pytorch_model.bin") ? " (pytorch_model.bin is not read: save the model as safetensors)" : ""));
    }
    ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(whole));
    tensors.shards_.push_back(std::move(reader));
    for (const TensorInfo& info : tensors.shards_[0].tensors()) tensors.entries_[info.name] = {0, &info};
    return tensors;
  }
  ASSIGN_OR_RETURN(const auto shard_of, ReadIndex(index));
  std::map<std::string, size_t> opened;
  for (const auto& [name, file] : shard_of) {
    const auto [at, is_new] = opened.emplace(file, tensors.shards_.size());
    if (is_new) {
      ASSIGN_OR_RETURN(SafetensorsReader reader, SafetensorsReader::Open(StrCat(dir, "/", file)));
      tensors.shards_.push_back(std::move(reader));
    }
    const TensorInfo* info = tensors.shards_[at->second].Find(name);
    if (info == nullptr) {
      return absl::InvalidArgumentError(
          StrCat(index, ": ", fields::ShowValue(name), " is not in ", fields::ShowValue(file), " as the index says"));
    }
    tensors.entries_[name] = {at->second, info};
  }
  return tensors;
}

absl::StatusOr<std::vector<float>> HubTensors::Float32(const Entry& entry) const {
  return shards_[entry.shard].ReadFloat32(entry.info->name);
}

}  // namespace smt
