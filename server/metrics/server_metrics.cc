#include "server/metrics/server_metrics.h"

#include <prometheus/text_serializer.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <sstream>

#include "server/metrics/process_metrics.h"

namespace smt {
namespace {

std::map<std::string, std::string> LabelMap(Metric metric, ServerMetrics::Labels values) {
  const MetricSpec& spec = MetricTable()[static_cast<size_t>(metric)];
  if (values.size() != spec.labels.size()) {
    std::fprintf(stderr, "metric %s takes %zu labels, not %zu\n", spec.name.c_str(), spec.labels.size(), values.size());
    std::abort();
  }
  std::map<std::string, std::string> labels;
  size_t i = 0;
  for (const std::string& value : values) labels[spec.labels[i++]] = value;
  return labels;
}

}  // namespace

ServerMetrics::ServerMetrics()
    : counters_(MetricTable().size()), gauges_(MetricTable().size()), histograms_(MetricTable().size()) {
  for (const MetricSpec& spec : MetricTable()) {
    const auto i = static_cast<size_t>(spec.id);
    switch (spec.kind) {
      case MetricKind::kCounter:
        counters_[i] = &prometheus::BuildCounter().Name(spec.name).Help(spec.help).Register(registry_);
        if (spec.labels.empty()) counters_[i]->Add({});  // visible as 0 from the start
        break;
      case MetricKind::kGauge:
        gauges_[i] = &prometheus::BuildGauge().Name(spec.name).Help(spec.help).Register(registry_);
        if (spec.labels.empty()) gauges_[i]->Add({});
        break;
      case MetricKind::kHistogram:
        histograms_[i] = &prometheus::BuildHistogram().Name(spec.name).Help(spec.help).Register(registry_);
        if (spec.labels.empty()) histograms_[i]->Add({}, spec.buckets);
        break;
    }
  }
}

prometheus::Counter& ServerMetrics::counter(Metric metric, Labels labels) {
  return counters_[static_cast<size_t>(metric)]->Add(LabelMap(metric, labels));
}
prometheus::Gauge& ServerMetrics::gauge(Metric metric, Labels labels) {
  return gauges_[static_cast<size_t>(metric)]->Add(LabelMap(metric, labels));
}
prometheus::Histogram& ServerMetrics::histogram(Metric metric, Labels labels) {
  const auto i = static_cast<size_t>(metric);
  return histograms_[i]->Add(LabelMap(metric, labels), MetricTable()[i].buckets);
}

void ServerMetrics::Add(Metric metric, double value, Labels labels) { counter(metric, labels).Increment(value); }
void ServerMetrics::Set(Metric metric, double value, Labels labels) { gauge(metric, labels).Set(value); }
void ServerMetrics::Observe(Metric metric, double value, Labels labels) { histogram(metric, labels).Observe(value); }

void ServerMetrics::SetCollectHook(std::function<void()> hook) {
  absl::MutexLock lock(&mu_);
  hook_ = std::move(hook);
}

std::string ServerMetrics::Text() {
  std::ostringstream out;
  {
    absl::MutexLock lock(&mu_);  // the hook may not run after it was taken away
    if (hook_) hook_();
  }
  prometheus::TextSerializer().Serialize(out, registry_.Collect());
  AppendProcessMetrics(out);
  return out.str();
}

}  // namespace smt
