#include "model/checkpoint.h"

#include <set>

#include "absl/strings/str_join.h"
#include "model/base/sha256.h"
#include "model/base/status_macros.h"
#include "model/base/strings.h"
#include "model/config_fields.h"
#include "model/config_json.h"
#include "model/tensor_names.h"

namespace smt {
namespace {

constexpr size_t kMaxTokenizerFileBytes = 1 << 28;
constexpr const char* kTokenizerFiles[] = {"vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json",
                                           "special_tokens_map.json"};
constexpr size_t kListed = 32;  // tensors a list of problems names

bool IsSupported(SafetensorsDType dtype) {
  return dtype == SafetensorsDType::kF32 || dtype == SafetensorsDType::kF16 || dtype == SafetensorsDType::kBF16;
}

// Exponent all ones, in each of the three formats.
bool HasNonFinite(SafetensorsDType dtype, std::string_view bytes) {
  const size_t width = dtype == SafetensorsDType::kF32 ? 4 : 2;
  const unsigned high = dtype == SafetensorsDType::kF16 ? 0x7C00 : 0x7F80;
  for (size_t at = width - 2; at + 1 < bytes.size(); at += width) {
    const unsigned top = static_cast<unsigned char>(bytes[at]) | static_cast<unsigned char>(bytes[at + 1]) << 8;
    if ((top & high) == high) return true;
  }
  return false;
}

}  // namespace

int64_t Checkpoint::Tensor::numel() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

absl::StatusOr<std::shared_ptr<const Checkpoint>> Checkpoint::Open(const std::string& model_dir) {
  std::vector<std::string> warnings;
  ASSIGN_OR_RETURN(StrideHybridConfig config, StrideHybridConfig::Load(model_dir, &warnings));
  ASSIGN_OR_RETURN(SafetensorsReader file, SafetensorsReader::Open(model_dir + "/model.safetensors"));
  std::shared_ptr<Checkpoint> checkpoint(new Checkpoint(model_dir, config, std::move(file)));
  checkpoint->warnings_ = std::move(warnings);
  RETURN_IF_ERROR(checkpoint->MatchTensors());
  for (const char* name : kTokenizerFiles) {
    absl::StatusOr<std::string> bytes = fields::ReadSmallFile(model_dir + "/" + name, kMaxTokenizerFileBytes);
    if (bytes.ok()) {
      checkpoint->tokenizer_files_.emplace_back(name, *std::move(bytes));
    } else if (!absl::IsNotFound(bytes.status())) {
      return bytes.status();
    }
  }
  return checkpoint;
}

absl::Status Checkpoint::MatchTensors() {
  std::vector<std::string> problems;
  std::set<std::string, std::less<>> expected;
  for (TensorSpec& spec : ExpectedTensors(config_)) {
    expected.insert(spec.name);
    const TensorInfo* found = file_.Find(spec.name);
    if (found == nullptr) {
      problems.push_back(StrCat(spec.name, " ", ShapeToString(spec.shape), " is missing"));
    } else if (found->shape != spec.shape) {
      problems.push_back(
          StrCat(spec.name, " is ", ShapeToString(found->shape), ", must be ", ShapeToString(spec.shape)));
    } else if (!IsSupported(found->dtype)) {
      problems.push_back(StrCat(spec.name, " is ", Name(found->dtype), ", must be F32, F16 or BF16"));
    } else {
      index_.emplace(spec.name, tensors_.size());
      tensors_.push_back({std::move(spec.name), found->dtype, found->shape, file_.Bytes(*found)});
    }
  }
  for (const TensorInfo& info : file_.tensors()) {
    if (expected.contains(info.name)) continue;
    if (IsIgnorableTensor(info.name, config_)) {
      warnings_.push_back(StrCat(info.name, " is not needed and is ignored"));
    } else {
      problems.push_back(StrCat(fields::ShowValue(info.name, 128), " ", ShapeToString(info.shape), " is not expected"));
    }
  }
  if (problems.empty()) return absl::OkStatus();
  const size_t count = problems.size();
  if (count > kListed) {
    problems.resize(kListed);
    problems.push_back(StrCat("and ", count - kListed, " more"));
  }
  return absl::InvalidArgumentError(StrCat(file_.source(), " does not fit config.json: ", count,
                                           count == 1 ? " tensor: " : " tensors: ", absl::StrJoin(problems, "; ")));
}

const Checkpoint::Tensor* Checkpoint::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::StatusOr<std::vector<float>> Checkpoint::Float32(std::string_view name, const std::vector<int64_t>& shape) const {
  RETURN_IF_ERROR(file_.Get(name, shape).status());
  return file_.ReadFloat32(name);
}

std::vector<std::string> Checkpoint::ValuesNotFinite() const {
  std::vector<std::string> found;
  for (const Tensor& tensor : tensors_) {
    if (HasNonFinite(tensor.dtype, tensor.bytes)) {
      found.push_back(StrCat(tensor.name, " has values that are not finite: the model will compute NaN"));
    }
  }
  return found;
}

std::string Checkpoint::Fingerprint() const {
  Sha256 hash;
  hash.AddPiece("smt model 1");
  hash.AddPiece(FingerprintText(config_));
  for (const auto& [name, bytes] : tokenizer_files_) {
    hash.AddPiece(name);
    hash.AddPiece(bytes);
  }
  for (const Tensor& tensor : tensors_) {
    hash.AddPiece(tensor.name);
    hash.AddPiece(Name(tensor.dtype));
    hash.AddPiece(ShapeToString(tensor.shape));
    hash.AddPiece(tensor.bytes);
  }
  return hash.HexDigest();
}

}  // namespace smt
