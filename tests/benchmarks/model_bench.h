// Benchmarks of the model and the engine alone, without gRPC. Each returns one JSON object.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace smt::bench {

struct ModelBenchOptions {
  std::string model_dir = "models/books-6m";
  std::string device = "cpu";
  std::string dtype = "float32";  // of the window
  int rounds = 5;
};

// Engine tokens/s (scheduling, sampling, delivery included) over the bare model stepping the same batch.
nlohmann::json EngineOverModel(const ModelBenchOptions& options, int streams, int tokens);
// One stream, tokens/s under hop over slide.
nlohmann::json HopOverSlide(const ModelBenchOptions& options, int tokens);
// Inter-token time late in a session over early, and resident memory at both.
nlohmann::json FlatCost(const ModelBenchOptions& options, int early, int late, int tokens);
// tokens/s absorbing a long prompt over stepping it token by token.
nlohmann::json IngestOverStep(const ModelBenchOptions& options, int prompt_tokens);
// Time of the deterministic engine's model over the non-deterministic one's, same batch.
nlohmann::json DeterminismPrice(const ModelBenchOptions& options, int streams, int tokens);

}  // namespace smt::bench
