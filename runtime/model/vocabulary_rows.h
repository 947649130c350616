// Single rows of a model's token embedding and output matrix, straight from its GGUF file: what the
// learned head shares with the target. Nothing is loaded but the rows asked for. Const and
// thread-safe. The file stays mapped while this object lives.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "foretoken/protocol/ids.h"
#include "foretoken/protocol/result.h"
#include "runtime/files/gguf.h"
#include "runtime/model/model.h"
#include "runtime/model/weights.h"

namespace foretoken {

class VocabularyRows {
 public:
  // Maps the file itself (the trainer, tests).
  static Result<std::shared_ptr<const VocabularyRows>> open(const std::string& path);
  // Of a loaded model, whose embedding look-up is used: no page of the file is touched by
  // embedding(), so that it never waits for a disk.
  static Result<std::shared_ptr<const VocabularyRows>> of(std::shared_ptr<const Model> model);
  // Of a file that outlives this object.
  static Result<std::shared_ptr<const VocabularyRows>> of(const GgufFile& file);

  // Null unless made by open().
  const GgufFile* file() const { return file_.get(); }
  std::int64_t hidden() const { return hidden_; }
  std::int64_t n_vocab() const { return n_vocab_; }
  int n_layers() const { return n_layers_; }
  // Of the file, that a step of one row reads: all but the embedding, where the output has a matrix
  // of its own. (Of a mixture of experts a step reads less.)
  std::size_t step_bytes() const { return step_bytes_; }
  // The file's values, dequantised. out: [hidden]. token in [0, n_vocab).
  void embedding(TokenId token, float* out) const;
  // Rows of the output matrix as learned heads multiply with them: in the file's own precision, but
  // floats rounded to Q8_0 (where hidden is a multiple of 32), because sums of float products
  // differ between devices, and a head's must not: the gate replays on a CPU what may be drafted
  // elsewhere.
  std::size_t output_row_bytes() const;
  void output(TokenId token, float* out) const;
  // Rows `ids` in the kernels' layout: row i is ids[i]. ids: in [0, n_vocab), as many as a multiple
  // of kernels::kPackRows.
  Result<Matrix> pack_output_rows(std::span<const TokenId> ids) const;

 private:
  struct Rows {
    const GgufTensor* tensor = nullptr;
    kernels::WeightType type = kernels::WeightType::kF32;
    std::size_t row_bytes = 0;
    const std::byte* row(TokenId token) const {
      return tensor->data.data() + std::size_t(token) * row_bytes;
    }
  };
  VocabularyRows() = default;
  static Result<std::shared_ptr<const VocabularyRows>> bound(std::shared_ptr<VocabularyRows> rows,
                                                             const GgufFile& file);
  Status bind(const GgufFile& file);
  kernels::WeightType head_type() const;
  // One row in head_type()'s file format. out: [output_row_bytes()].
  void head_row(TokenId token, std::byte* out) const;

  std::unique_ptr<GgufFile> file_;      // of open()
  std::shared_ptr<const Model> model_;  // of of(model)
  Rows embedding_, output_;
  std::int64_t hidden_ = 0, n_vocab_ = 0;
  int n_layers_ = 0;
  std::size_t step_bytes_ = 0;
};

}  // namespace foretoken
