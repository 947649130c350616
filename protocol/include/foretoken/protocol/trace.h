// The trace message: a FlatBuffers header plus raw tensor frames; the same bytes on the wire and in
// segments on disk. Parsed as hostile input. Byte layout: PROTOCOL.md.
#pragma once

#include <span>

#include "foretoken/protocol/frame.h"
#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"

namespace foretoken {

// Per generated token at most kMaxCandidates candidates and kTeacherTopK top tokens; every round
// has as many confidences and kinds as drafted tokens.
Message serialize(const RequestTrace& trace);
// Errors begin with the reason's name: "truncated: ", "magic: ", "protocol: ", "checksum: ",
// "shape: ", "non-finite: ".
Result<RequestTrace> parse_trace(std::span<const Frame> message);

}  // namespace foretoken
