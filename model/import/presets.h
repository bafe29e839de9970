// Named model shapes for `smt_model init`.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "model/config.h"

namespace smt {

struct Preset {
  std::string_view name;
  std::string_view description;  // one line
  StrideHybridConfig config;
  bool byte_vocabulary;  // ids 0-255 are bytes and 256 ends a text: tokenizer files can be written without training
};

const std::vector<Preset>& Presets();
const Preset* FindPreset(std::string_view name);  // nullptr if there is none

}  // namespace smt
