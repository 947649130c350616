// One schedule of faults: a server and a trainer as shipped, traffic, an attacker and an operator's
// bad days, all drawn from one seed, and the laws checked at every step.
//
// Laws:
//   content     a version number is one content for ever, on the wire and where it serves
//   unproven    what serves was published by the trainer: signed by its key, let through by its
//               gate
//   monotone    the served version rises but for rollbacks; after a restart it is the one that was
//               served, unless the disk had refused to keep it
//   once        no request is learned from twice
//   counted     every request the engine logged was sent or counted as dropped
//   bounded     queues, buffer and folders stay within their bounds, and leave no litter
//   converges   once the faults stop, the newest published version serves (or is on trial, or was
//               rolled back)
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace foretoken::simulation {

// Deliberate bugs: the laws must notice each of them.
enum class Bug {
  kNone,
  kTrustsEverybody,  // the server takes any signature
  kNoVersionCheck,   // a naive receiver: serves whatever is signed and whole
  kForgetsServed,    // the server's folder is lost at every restart
  kForgetsNumbers,   // the trainer's folder is lost at every restart
  kNeverResends,     // a version is sent once
  kDropsSilently,    // traces vanish uncounted
  kForgetsRequests,  // the checkpoint is restored, but not the requests that were learned from
};
inline constexpr Bug kBugs[] = {Bug::kTrustsEverybody, Bug::kNoVersionCheck, Bug::kForgetsServed,
                                Bug::kForgetsNumbers,  Bug::kNeverResends,   Bug::kDropsSilently,
                                Bug::kForgetsRequests};
const char* name(Bug bug);
const char* law_that_notices(Bug bug);

struct Report {
  std::vector<std::string> violations;  // "law: what happened at which tick"
  std::int64_t ticks = 0, requests = 0, crashes = 0, full_disks = 0, attacks = 0;
  std::int64_t published = 0, swaps = 0, rollbacks = 0;
  std::map<std::string, std::int64_t> refused;  // by the server, by reason
};

Report run_schedule(std::uint64_t seed, Bug bug, const std::string& folder);

}  // namespace foretoken::simulation
