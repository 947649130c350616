// Whole files that are either the old or the new one, whatever happens while they are written: a
// temporary file beside the target, fsync, rename, fsync of the folder.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "foretoken/protocol/result.h"

namespace foretoken {

// mode: as for open(2), before the umask.
Status write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes,
                             unsigned mode = 0644);
// A text so; to standard output where the path is empty or "-".
Status write_report(const std::filesystem::path& path, const std::string& text);
// Deletes the temporary files that writers killed in between have left in a folder. Its owner calls
// this when it starts; nobody else writes there.
void remove_leftovers(const std::filesystem::path& folder);
// Errors: kNotFound, kIo, kOutOfRange (larger than max_bytes).
Result<std::vector<std::byte>> read_file(const std::filesystem::path& path, std::size_t max_bytes);

}  // namespace foretoken
