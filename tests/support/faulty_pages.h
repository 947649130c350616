// KV pages that break a law: negative controls, which the tests of the laws must see.
#pragma once

#include <memory>

#include "runtime/kv/kv_pages.h"
#include "runtime/model/model.h"

namespace foretoken::testing {

enum class PageFault {
  // Law 2: a page is sealed as it was when its last slot was first written, which may have been by
  // a drafted token that was rejected afterwards.
  kSealDrafted,
  // Law 1: the 16-bit copies that a sequence takes over from the prefix index are made from codes,
  // as if sealed pages were enough to resume from.
  kResumeFromCodes,
};

MakeKvPages faulty_pages(PageFault fault);
// The same model, whose caches have such pages.
std::shared_ptr<const Model> with_faulty_pages(std::shared_ptr<const Model> model, PageFault fault);

}  // namespace foretoken::testing
