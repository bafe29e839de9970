// A model folder opened for reading: its config and its weights, memory-mapped and checked against each other. No
// LibTorch; target smt_checkpoint.
//
//   MODEL_DIR/config.json          model/config.h
//   MODEL_DIR/model.safetensors    exactly the tensors of ExpectedTensors (model/tensor_names.h), F32, F16 or BF16 each
//   MODEL_DIR/vocab.json, merges.txt   the tokenizer; not needed here, but part of the fingerprint
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/io/safetensors.h"

namespace smt {

// Immutable, thread-safe. Tensors point into the mapped file and live as long as the checkpoint: whoever keeps views
// keeps the shared_ptr.
class Checkpoint {
 public:
  struct Tensor {
    std::string name;
    SafetensorsDType dtype;      // kF32, kF16 or kBF16
    std::vector<int64_t> shape;  // as ExpectedTensors says
    std::string_view bytes;      // little-endian, row-major; maybe not aligned to the element in files of others

    int64_t numel() const;
  };

  // NOT_FOUND names the file. INVALID_ARGUMENT lists every violation of the config, or every tensor that is missing,
  // unexpected, of another shape or of a dtype that is not supported. DATA_LOSS: model.safetensors is damaged.
  static absl::StatusOr<std::shared_ptr<const Checkpoint>> Open(const std::string& model_dir);

  const std::string& model_dir() const { return model_dir_; }
  const StrideHybridConfig& config() const { return config_; }
  const std::vector<Tensor>& tensors() const { return tensors_; }  // in ExpectedTensors' order
  const Tensor* Find(std::string_view name) const;                 // nullptr if the model has no such tensor
  // The named tensor as float32, row-major. NOT_FOUND, or INVALID_ARGUMENT where it is not of `shape`. Bound to a
  // checkpoint this is the CPU runner's WeightSource.
  absl::StatusOr<std::vector<float>> Float32(std::string_view name, const std::vector<int64_t>& shape) const;

  // One sentence each: unknown config keys, unwise values, ignored tensors.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // One sentence for each tensor that holds NaN or infinities. Reads every weight.
  std::vector<std::string> ValuesNotFinite() const;
  // What ties a state to a model: SHA-256 (64 hexadecimal digits) over the config's FingerprintText, the tokenizer
  // files' bytes, and each tensor's name, dtype, shape and bytes. window_policy and bos/eos ids are not in it. Reads
  // every weight: 0.5 to 2 s a GB.
  std::string Fingerprint() const;

 private:
  Checkpoint(std::string model_dir, const StrideHybridConfig& config, SafetensorsReader file)
      : model_dir_(std::move(model_dir)), config_(config), file_(std::move(file)) {}
  absl::Status MatchTensors();

  const std::string model_dir_;
  const StrideHybridConfig config_;
  const SafetensorsReader file_;
  std::vector<Tensor> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::vector<std::string> warnings_;
  std::vector<std::pair<std::string, std::string>> tokenizer_files_;  // name, bytes
};

}  // namespace smt
