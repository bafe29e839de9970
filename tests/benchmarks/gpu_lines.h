// The lines of `smt_bench gpu`. Each gives {batch: {figure: value}}, medians of the rounds; {"skipped": reason} where
// a batch cannot be measured, and null where the line does not apply. Figures: tok_s is ids/s of all sessions together,
// ms and *_ms milliseconds, *_bytes bytes.
//
// All but mamba_step and equality go through an Executor as the engine uses it, max_in_flight steps outstanding,
// drawing with temperature 0.8 and top_p 0.95. Sessions that step together are at phases (t mod s) spread evenly; what
// is measured are whole strides.
#pragma once

#include "nlohmann/json.hpp"
#include "tests/benchmarks/gpu_options.h"

namespace smt::bench {

// {"1": device, dtype, numerics_id, max_in_flight, total_bytes and free_bytes (of the device, as its driver says, the
// weights being there), work_bytes, state_bytes, slot_bytes, capacity_slots}.
nlohmann::json MachineLine(const GpuBenchOptions& options);

// Whole tokens: tok_s; deferred, of 1 item; of the time between successive ids of one stream the mean token_ms,
// token_ms_p50, token_ms_p99 and token_p99_over_mean; of the time between the results of successive steps step_ms and
// the same. The end of a stride takes a session two steps, other sessions one.
nlohmann::json HopWholeLine(const GpuBenchOptions& options);
nlohmann::json SlideLine(const GpuBenchOptions& options);
// hop_whole of several sessions at phases drawn at random, as requests come.
nlohmann::json RandomPhasesLine(const GpuBenchOptions& options);

// ms of one write of each session, pooling included, through the SlotRunner.
nlohmann::json MambaStepLine(const GpuBenchOptions& options);

// Reading prompts under pool_scope window and tokens: tok_s with each prompt in one step, and engine_tok_s in such
// steps as the engine makes while nobody streams.
nlohmann::json IngestLine(const GpuBenchOptions& options);
nlohmann::json IngestTokensLine(const GpuBenchOptions& options);

// "1": the median ms of saving and loading a session. "64" and "256": tok_s of decoding while others' states are saved
// and loaded 100 times a second (save_restores_s is what came of it), tok_s_alone, decode_rate_ratio.
nlohmann::json SaveRestoreLine(const GpuBenchOptions& options);

// 4096 sessions resident (slots), 256 of them drawing a few ids, then the next 256: tok_s, mean_ms between the results
// of successive steps, and longest_stall_ms, the longest such time in any round.
nlohmann::json ResidentLine(const GpuBenchOptions& options);

// early_ms and late_ms between successive ids at positions from 1,000 and from 1,000,000 on, ratio.
nlohmann::json LateOverEarlyLine(const GpuBenchOptions& options);

// price: deterministic_ms over nondeterministic_ms, of a step; the latter the fastest way there is in this build
// (nondeterministic names it). Null where there is none.
nlohmann::json DeterminismPriceLine(const GpuBenchOptions& options);

// A trained model in float32 and `dtype` (bfloat16 where that is float32) under hop, {"1": ...}: kl_nats, the mean
// divergence of the rounded window's distribution from the float32 one's, both given the float32 memory;
// perplexity_float32, perplexity and perplexity_ratio (the latter over the former) end to end; tokens, numerics_id.
// Null without a reference.
nlohmann::json EqualityLine(const GpuBenchOptions& options);

// A server process over loopback at 256 streams over the engine alone: server_tok_s, engine_tok_s, ratio.
nlohmann::json GrpcOverEngineLine(const GpuBenchOptions& options);

}  // namespace smt::bench
