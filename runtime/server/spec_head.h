// The head that an operator names on the command line: a folder with a published EAGLE-3 head, or a
// weight bundle. Trusted as the model file is, and parsed as hostile input all the same.
#pragma once

#include <memory>
#include <string>

#include "foretoken/protocol/bundle.h"
#include "runtime/model/model.h"
#include "runtime/speculate/learned.h"
#include "runtime/text/tokenizer.h"
#include "runtime/versions/version_keeper.h"

namespace foretoken {

struct SpecHead {
  GivenSpeculator given;
  HeadTaps taps{};  // the layers that the server has to tap
  std::shared_ptr<const DraftHead> head;
};

// Errors begin with the path.
Result<SpecHead> load_spec_head(const std::string& path,
                                const std::shared_ptr<const VocabularyRows>& rows);
// The tap check (evaluate/tap_check.h) on the built-in text. Logs what it found; an error where the
// head reads other layers than it was trained on.
Status probe_spec_head(const SpecHead& head, const Model& model, const Tokenizer& tokenizer,
                       int threads);

// Bundles of any signer, for one who names the file himself. Errors begin with the path.
Result<Bundle> read_bundle(const std::string& path);
// The error with the path in front, unless it is in it.
Error at(const std::string& path, Error error);

}  // namespace foretoken
