// Every metric the server exposes: the one source of truth for names, labels, help and buckets.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace smt {

enum class Metric {
  kNumRequestsRunning,
  kNumRequestsWaiting,
  kStateSlots,
  kSessions,
  kStreamsParked,
  kLeasesHeld,
  kStoreFreeBytes,
  kDeviceStallSeconds,
  kDraining,
  kBuildInfo,
  kModelInfo,
  kGrpcHandledTotal,
  kGrpcHandlingSeconds,
  kGenerationsFinishedTotal,
  kRequestsRejectedTotal,
  kPromptTokensTotal,
  kGenerationTokensTotal,
  kSessionOperationsTotal,
  kSessionRestoresTotal,
  kSessionRecomputedTokensTotal,
  kStreamsResumedTotal,
  kTokensReplayedTotal,
  kSessionLeaseConflictsTotal,
  kLeaseRenewFailuresTotal,
  kSnapshotCorruptionTotal,
  kStoreErrorsTotal,
  kTimeToFirstTokenSeconds,
  kInterTokenLatencySeconds,
  kE2eRequestLatencySeconds,
  kRequestQueueTimeSeconds,
  kRequestPrefillTimeSeconds,
  kRequestDecodeTimeSeconds,
  kRequestPromptTokens,
  kRequestGenerationTokens,
  kBatchSize,
  kEngineStepDurationSeconds,
  kSessionSaveDurationSeconds,
  kSessionRestoreDurationSeconds,
  kStoreSyncDurationSeconds,
  kSessionSnapshotSizeBytes,
  kSessionDurabilityLagTokens,
  kCount,
};

enum class MetricKind { kCounter, kGauge, kHistogram };

struct MetricSpec {
  Metric id;
  MetricKind kind;
  std::string name;  // as exposed
  std::string help;  // with the unit
  std::vector<std::string> labels;
  std::vector<double> buckets;  // histograms: upper bounds, +Inf is added
};

// Ordered by id: MetricTable()[i].id == Metric(i).
const std::vector<MetricSpec>& MetricTable();

}  // namespace smt
