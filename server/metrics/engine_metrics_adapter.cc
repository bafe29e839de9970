#include "server/metrics/engine_metrics_adapter.h"

namespace smt {
namespace {

// Children are looked up once: a step may be 100 us long.
class Adapter final : public EngineMetrics {
 public:
  explicit Adapter(ServerMetrics* metrics)
      : batch_size_(metrics->histogram(Metric::kBatchSize)),
        ingest_(metrics->histogram(Metric::kEngineStepDurationSeconds, {"ingest"})),
        write_(metrics->histogram(Metric::kEngineStepDurationSeconds, {"write"})),
        refill_(metrics->histogram(Metric::kEngineStepDurationSeconds, {"refill"})),
        decode_(metrics->histogram(Metric::kEngineStepDurationSeconds, {"decode"})),
        sample_(metrics->histogram(Metric::kEngineStepDurationSeconds, {"sample"})),
        all_(metrics->histogram(Metric::kEngineStepDurationSeconds, {"all"})),
        snapshot_seconds_(metrics->histogram(Metric::kSessionSaveDurationSeconds, {"snapshot"})),
        eviction_seconds_(metrics->histogram(Metric::kSessionSaveDurationSeconds, {"eviction"})),
        snapshot_bytes_(metrics->histogram(Metric::kSessionSnapshotSizeBytes)) {}

  void OnStep(const StepMetrics& step) override {
    batch_size_.Observe(step.batch_size);
    Observe(ingest_, step.timings.ingest);
    Observe(write_, step.timings.write);
    Observe(refill_, step.timings.refill);
    Observe(decode_, step.timings.decode);
    Observe(sample_, step.timings.sample);
    Observe(all_, absl::ToDoubleSeconds(step.duration));
  }
  void OnSave(SaveKind kind, absl::Duration duration, int64_t bytes) override {
    (kind == SaveKind::kSnapshot ? snapshot_seconds_ : eviction_seconds_).Observe(absl::ToDoubleSeconds(duration));
    snapshot_bytes_.Observe(static_cast<double>(bytes));
  }

 private:
  // A phase that a step did not have is no observation of zero seconds.
  static void Observe(prometheus::Histogram& histogram, double seconds) {
    if (seconds > 0) histogram.Observe(seconds);
  }

  prometheus::Histogram &batch_size_, &ingest_, &write_, &refill_, &decode_, &sample_, &all_, &snapshot_seconds_,
      &eviction_seconds_, &snapshot_bytes_;
};

}  // namespace

std::unique_ptr<EngineMetrics> NewEngineMetrics(ServerMetrics* metrics) { return std::make_unique<Adapter>(metrics); }

}  // namespace smt
