// What `smt_bench gpu` is asked to measure.
#pragma once

#include <string>
#include <vector>

namespace smt::bench {

struct GpuBenchOptions {
  std::string model_dir;
  std::string device = "cuda:0";   // "cpu" too: a dry run of the benchmark itself
  std::string dtype = "bfloat16";  // of the window
  std::vector<int> batches = {};   // sessions that step together: hop_whole, slide (up to 256), determinism_price;
                                   // empty: 1, 64, 256, 1024, or with `quick` 1, 4
  std::vector<std::string> lines;  // which to measure; empty: all
  int rounds = 5;                  // of each figure; the median counts
  bool quick = false;              // few tokens and sessions: whether it works, not what it gives
  std::string baseline;            // JSON of another implementation's figures, see baseline.h; empty: none
  std::string reference;           // equality: a trained model's folder; empty: the line is left out
  std::string text;                // equality: a file of text, or a JSON array of ids
  std::string out;                 // file that gets the figures after each line, should a later one fail; empty: none

  template <typename T>
  T Scale(T full, T few) const {
    return quick ? few : full;
  }
};

}  // namespace smt::bench
