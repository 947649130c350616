// The trace message: a FlatBuffers header plus raw tensor frames; the same bytes on the wire and in segments
// on disk. Parsed as hostile input. Byte layout: PROTOCOL.md.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "foretoken/protocol/result.h"
#include "foretoken/protocol/trace_record.h"

namespace foretoken {

using Frame = std::vector<std::byte>;
using Message = std::vector<Frame>;

Message serialize(const RequestTrace& trace);
Result<RequestTrace> parse_trace(std::span<const Frame> frames);

}  // namespace foretoken
