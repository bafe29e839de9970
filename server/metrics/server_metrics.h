// The server's metrics: one family for each line of MetricTable(), in a prometheus-cpp registry.
//
// Thread-safe. Label values are given in the order of the table; a wrong number of them is a bug of ours and dies.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/metrics/metric_table.h"

namespace smt {

class ServerMetrics {
 public:
  using Labels = std::initializer_list<std::string>;

  ServerMetrics();

  void Add(Metric metric, double value = 1, Labels labels = {});  // counters
  void Set(Metric metric, double value, Labels labels = {});      // gauges
  void Observe(Metric metric, double value, Labels labels = {});  // histograms
  void Observe(Metric metric, absl::Duration value, Labels labels = {}) {
    Observe(metric, absl::ToDoubleSeconds(value), labels);
  }

  // For callers that must not look a child up each time. Live as long as the registry.
  prometheus::Counter& counter(Metric metric, Labels labels = {});
  prometheus::Gauge& gauge(Metric metric, Labels labels = {});
  prometheus::Histogram& histogram(Metric metric, Labels labels = {});

  // Called before each scrape, to set gauges that others keep.
  void SetCollectHook(std::function<void()> hook) ABSL_LOCKS_EXCLUDED(mu_);

  // Prometheus text format, `process_*` included.
  std::string Text() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  prometheus::Registry registry_;
  std::vector<prometheus::Family<prometheus::Counter>*> counters_;  // by metric; null where it is of another kind
  std::vector<prometheus::Family<prometheus::Gauge>*> gauges_;
  std::vector<prometheus::Family<prometheus::Histogram>*> histograms_;
  absl::Mutex mu_;
  std::function<void()> hook_ ABSL_GUARDED_BY(mu_);
};

}  // namespace smt
