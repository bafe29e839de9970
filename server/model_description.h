// What GetModel answers, from the model's config and how it is being run.
#pragma once

#include <string>

#include "model/config.h"
#include "server/engine/executor.h"
#include "server/service/request_limits.h"
#include "smt/v1/model_service.pb.h"

namespace smt {

// `policy`: the one in use.
v1::Model DescribeModel(const std::string& model_dir, const std::string& fingerprint, const StrideHybridConfig& config,
                        WindowPolicy policy, const ExecutorInfo& info, const RequestLimits& limits);

}  // namespace smt
