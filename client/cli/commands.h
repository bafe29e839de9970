// The commands of `smt`. Each Add* registers one with CLI11; what is chosen runs in main and returns an exit code
// (client/error.h). Output meant for programs goes to stdout, everything else to stderr.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "client/client.h"
#include "google/protobuf/message.h"

namespace smt::cli {

struct Context {
  client::Client::Options options;
  bool json = false;
  std::function<int()> run;  // set by the command that was chosen
};

void AddGenerate(CLI::App* app, Context* context);
void AddSessions(CLI::App* app, Context* context);   // session list|show|create|update|delete, and those below
void AddBranching(CLI::App* app, Context* context);  // fork|rollback|checkpoint, of `session`
// session export|import|verify|repair|backup; `sessions` is the command that AddSessions makes.
void AddSessionTransfer(CLI::App* sessions, Context* context);
void AddText(CLI::App* app, Context* context);        // score, tokenize, detokenize
void AddServerInfo(CLI::App* app, Context* context);  // model, health

// Prints "smt: …" to stderr and gives the exit code.
int Fail(const client::Error& error);
// A session's answer to a call: for people or, with --json, for programs. Gives the exit code.
int PrintSession(const Context& context, const client::Error& error, const v1::Session& session);
// "KEY=VALUE" each, into the session; false, said on stderr, when one is not.
bool AddLabels(const std::vector<std::string>& labels, v1::Session* session);
void SetTtl(double seconds, v1::Session* session);
// One JSON object on one line of stdout, field names as in the proto.
void PrintJson(const google::protobuf::Message& message);
// `text`, or all of stdin when it was not given. Binary safe.
std::string ReadStdin();
// What the commands of `session` share (sessions.cc).
struct SessionFlags {
  std::string id, etag;
  double ttl = 0;
  std::vector<std::string> labels;
  bool allow_missing = false;
};
std::string FormatTime(const google::protobuf::Timestamp& time);
// The session, or the error; gives the exit code.
int PrintSession(const Context& context, const client::Error& error, const v1::Session& session);
// "key=value" into the map; false, said on stderr, when there is no "=".
bool AddLabels(const std::vector<std::string>& labels, v1::Session* session);
void SetTtl(double seconds, v1::Session* session);
// A JSON array of integers. False when it is not one.
bool ParseIds(const std::string& json, std::vector<int32_t>* ids);

}  // namespace smt::cli
