// Models whose logits break law 1: negative controls, which the tests of the law must see.
#pragma once

#include <memory>

#include "runtime/model/model.h"

namespace foretoken::testing {

enum class LogitFault {
  kAcceptFirstDraft,  // the target's choice is the first drafted token, whatever it would choose
  kBatchDependent,    // as if the order of summation followed the number of rows
};

std::shared_ptr<const Model> with_faulty_logits(std::shared_ptr<const Model> model,
                                                LogitFault fault);

}  // namespace foretoken::testing
