#include "model/import/presets.h"

namespace smt {
namespace {

StrideHybridConfig Gpt2Mamba130m() {
  StrideHybridConfig c;  // the defaults are this shape
  c.bos_token_id = c.eos_token_id = 50256;
  c.ssm.dt_rank = 48;
  return c;
}

StrideHybridConfig Books6m() {
  StrideHybridConfig c;
  c.vocab_size = 4096;
  c.d_model = 256;
  c.bos_token_id = c.eos_token_id = 0;
  c.transformer.n_layer = 5;
  c.transformer.n_head = 8;
  c.transformer.n_positions = 128;
  c.ssm.n_layer = 3;
  c.ssm.dt_rank = 16;
  return c;
}

StrideHybridConfig Tiny() {
  StrideHybridConfig c;
  c.vocab_size = 257;
  c.d_model = 32;
  c.n_ssm_outputs = 4;
  c.m_input_tokens = 12;
  c.stride = 4;
  c.bos_token_id = c.eos_token_id = 256;
  c.transformer.n_layer = 2;
  c.transformer.n_head = 2;
  c.transformer.n_positions = 32;
  c.ssm.n_layer = 2;
  c.ssm.d_state = 4;
  c.ssm.dt_rank = 2;
  return c;
}

StrideHybridConfig TinySimple() {
  StrideHybridConfig c = Tiny();
  c.transformer.kind = TransformerKind::kSimple;
  c.ssm.kind = SsmKind::kSimple;
  return c;
}

}  // namespace

const std::vector<Preset>& Presets() {
  static const std::vector<Preset> presets = {
      {"gpt2-mamba130m", "GPT-2 small and Mamba-130M, 216M parameters, GPT-2's vocabulary", Gpt2Mamba130m(), false},
      {"books-6m", "the bundled model's shape, 6M parameters", Books6m(), false},
      {"tiny", "GPT-2 and Mamba, 52k parameters, a vocabulary of bytes; for tests", Tiny(), true},
      {"tiny-simple", "the simple transformer and SSM, 40k parameters, a vocabulary of bytes; for tests", TinySimple(),
       true},
  };
  return presets;
}

const Preset* FindPreset(std::string_view name) {
  for (const Preset& preset : Presets()) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

}  // namespace smt
