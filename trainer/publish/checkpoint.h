// The trainer's checkpoint: one file, replaced atomically, ended by a hash. What does not read back
// whole is set aside and training starts over from the buffer.
#pragma once

#include <filesystem>
#include <optional>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "trainer/gate/prequential_gate.h"
#include "trainer/learner.h"

namespace foretoken::trainer {

struct Checkpoint {
  ObjectiveKind objective = ObjectiveKind::kOverlap;
  std::uint64_t next_sequence = 0;
  std::int64_t trained_tokens = 0, trained_requests = 0;
  LearnerState learner;
  GateState gate;
  SpeculatorVersion highest_version, served_version;
  std::string verdict;
};

Status write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);
// Errors: kNotFound; kInvalidInput (damaged, of another format, or not finite).
Result<Checkpoint> read_checkpoint(const std::filesystem::path& path);

}  // namespace foretoken::trainer
