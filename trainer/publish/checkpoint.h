// The trainer's checkpoint: one file, replaced atomically, ended by a hash. What does not read back
// whole is set aside and training starts over from the buffer.
#pragma once

#include <deque>
#include <filesystem>
#include <vector>

#include "foretoken/protocol/control.h"
#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "trainer/gate/prequential_gate.h"

namespace foretoken::trainer {

struct Checkpoint {
  std::uint64_t next_sequence = 0;
  std::vector<std::byte> learner;  // Learner::state()
  GateState gate;                  // each candidate's weights are in a file of its own
  SpeculatorVersion highest_version, published, served;
  std::deque<CandidateVerdict> verdicts;
};

Status write_checkpoint(const std::filesystem::path& path, const Checkpoint& checkpoint);
// Errors: kNotFound; kInvalidInput (damaged, of another format, or not finite).
Result<Checkpoint> read_checkpoint(const std::filesystem::path& path);

}  // namespace foretoken::trainer
