// The n-gram stores in the state folder, one file a key, so that a restarted server drafts as well
// as it did before: written at drain, read at start. A file's name is the key's label (api_keys.h),
// never the key; "shared" where there are no keys. Contents and their checks: traffic_store.h.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"

namespace foretoken {

// Errors are logged, not fatal: a server without them drafts worse for a while, that is all.
void save_traffic_files(const std::filesystem::path& folder,
                        const std::vector<SavedTraffic>& saved);
// At most max_files, the newest; what is older than max_age_s (0: no limit) is deleted.
std::vector<SavedTraffic> load_traffic_files(const std::filesystem::path& folder,
                                             std::size_t max_files, double max_age_s = 0);
// Notes that a key's traffic is to be forgotten, one file a key in <server folder>/forget: left by
// `foretoken forget`, read by the server once a second and at start.
Result<std::filesystem::path> leave_forget_note(const std::filesystem::path& server_folder,
                                                const std::string& key_id);
// Calls `forget` for every note, deletes the key's store, and then the note.
void read_forget_notes(const std::filesystem::path& server_folder,
                       const std::function<void(const std::string& key_id)>& forget);
std::filesystem::path traffic_file(const std::filesystem::path& folder, const std::string& key_id);

}  // namespace foretoken
