// Sends one logged request as a stream and follows the answer's server-sent events.
#pragma once

#include <boost/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "runtime/replay/http_client.h"
#include "runtime/replay/log.h"
#include "runtime/replay/outcome.h"

namespace foretoken {

struct AskOptions {
  std::string model;                // overrides the body's; "" keeps it
  std::optional<bool> speculation;  // sets "foretoken": {"speculation": ...}
  std::optional<bool> trace;
  std::optional<std::uint64_t> seed;  // where the body has none
};

// Fills everything of the outcome but index, domain, due_s and sent_s.
void ask(HttpClient& client, const LoggedRequest& request, const AskOptions& options,
         RequestOutcome& outcome);

// Server-sent events: bytes in, the data of whole events out. Lines may end in \n or \r\n; comments
// and other fields are passed over.
class EventReader {
 public:
  template <class F>
  void push(std::string_view bytes, F on_data) {
    pending_ += bytes;
    std::size_t begin = 0;
    for (std::size_t end; (end = pending_.find('\n', begin)) != std::string::npos;
         begin = end + 1) {
      std::string_view line(pending_.data() + begin, end - begin);
      if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
      if (line.empty()) {
        if (!data_.empty()) on_data(std::string_view(data_));
        data_.clear();
      } else if (line.starts_with("data:")) {
        line.remove_prefix(line.starts_with("data: ") ? 6 : 5);
        if (!data_.empty()) data_ += '\n';
        data_ += line;
      }
    }
    pending_.erase(0, begin);
  }

 private:
  std::string pending_, data_;
};

}  // namespace foretoken
