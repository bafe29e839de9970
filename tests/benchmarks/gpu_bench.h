// `smt_bench gpu`: what one GPU does with a model through our own kernels, without the engine.
#pragma once

#include <string>
#include <vector>

#include "nlohmann/json.hpp"

namespace smt::bench {

struct GpuBenchOptions {
  std::string model_dir;
  std::string device = "cuda:0";
  std::string dtype = "bfloat16";
  std::string baseline;  // JSON of another implementation's figures, {line: {batch: {figure: value}}}; empty: none
  std::vector<int> batches = {1, 64, 256, 1024};
  std::vector<std::string> lines;  // which to measure; empty: all
  int rounds = 5;
};

// {line: {batch: {figure: value}}}; with a baseline also the ratio to each figure of its own that ends in "tok_s" or
// "_ms". Lines: hop_whole and slide (whole tokens, sampling included, phases spread evenly), write (pooling and the SSM
// step), ingest, save_restore.
nlohmann::json GpuFigures(const GpuBenchOptions& options);

}  // namespace smt::bench
