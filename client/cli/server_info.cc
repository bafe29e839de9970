// smt model and smt health.
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "client/cli/commands.h"

namespace smt::cli {
namespace {

void Show(const v1::Model& model) {
  const auto& c = model.config();
  absl::PrintF("%s\n  fingerprint     %s\n", model.name(), model.fingerprint());
  absl::PrintF("  shape           D=%d V=%d, window [%d memory | %d tokens], a write every %d\n", c.d_model(),
               c.vocab_size(), c.memory_slots(), c.input_tokens(), c.stride());
  absl::PrintF("  transformer     %s, %d layers, %d heads\n  ssm             %s, %d layers\n", c.transformer_kind(),
               c.transformer_layers(), c.transformer_heads(), c.ssm_kind(), c.ssm_layers());
  int64_t parameters = 0;
  for (const auto& part : model.parameters()) parameters += part.parameters();
  absl::PrintF("  parameters      %d\n", parameters);
  for (const auto& part : model.parameters()) absl::PrintF("    %-13s %d\n", part.part(), part.parameters());
  absl::PrintF(
      "  a token costs   %.3g multiply-adds\n  a session holds %d bytes of state, 4 more a token for its log\n",
      model.token_cost().multiply_adds(), model.state_bytes_per_session());
  const auto& r = model.runtime();
  absl::PrintF("  runs on         %s, %s, %s, %s, %d slots of %d bytes\n", r.device(), r.dtype(), r.window_policy(),
               r.deterministic() ? "deterministic" : "not deterministic", r.slots(), r.slot_bytes());
}

}  // namespace

void AddServerInfo(CLI::App* app, Context* context) {
  CLI::App* model = app->add_subcommand("model", "What the server serves");
  model->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      v1::Model value;
      const client::Error error = client.GetModel(&value);
      if (!error.ok()) return Fail(error);
      if (context->json) {
        PrintJson(value);
      } else {
        Show(value);
      }
      return 0;
    };
  });

  auto service = std::make_shared<std::string>();
  CLI::App* health = app->add_subcommand("health", "Whether the server is ready; exit code 0 when it is, 5 when not");
  health->add_option("--service", *service, "A service's name, or \"liveness\". Default: readiness");
  health->callback([=] {
    context->run = [=] {
      client::Client client(context->options);
      bool serving = false;
      const client::Error error = client.Health(*service, &serving);
      if (!error.ok()) return Fail(error);
      if (context->json) {
        absl::PrintF("{\"status\":\"%s\"}\n", serving ? "SERVING" : "NOT_SERVING");
      } else {
        absl::PrintF("%s\n", serving ? "SERVING" : "NOT_SERVING");
      }
      return serving ? 0 : 5;
    };
  });
}

}  // namespace smt::cli
