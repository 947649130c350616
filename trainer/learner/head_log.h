// What the head's learner says to the log. Apart from it, because torch's headers bring a fmt of
// their own.
#pragma once

#include <cstdint>

namespace foretoken::trainer {

void log_head_begun(std::int64_t hidden, std::int64_t inner, std::int64_t vocabulary,
                    std::int64_t tokens);
void log_vocabulary_counted(std::int64_t tokens, double gain);
void log_step_left_out();

}  // namespace foretoken::trainer
