#include "trainer/learner/head_log.h"

#include <spdlog/spdlog.h>

namespace foretoken::trainer {

void log_head_begun(std::int64_t hidden, std::int64_t inner, std::int64_t vocabulary,
                    std::int64_t tokens) {
  spdlog::info("head of {} x {} begun after {} tokens, draft vocabulary of {}", hidden, inner,
               tokens, vocabulary);
}

void log_vocabulary_counted(std::int64_t tokens, double gain) {
  spdlog::info("draft vocabulary counted again after {} tokens: covers {:.1f} % more", tokens,
               100 * gain);
}

void log_step_left_out() { spdlog::warn("head: a step's gradient is not finite: left out"); }

}  // namespace foretoken::trainer
