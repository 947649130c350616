#include "trainer/head/recurrent_head.h"

#include <ATen/cpu/Utils.h>

#include <cmath>
#include <cstring>

#include "foretoken/kernels/convert.h"
#include "foretoken/kernels/linear.h"
#include "runtime/speculate/fusion_table.h"

namespace foretoken::trainer {
namespace {

// Four bits: half the bytes a step of eight, and as many tokens accepted (trainer/README.md).
HeadMatrix rounded(const torch::Tensor& values) {
  const auto contiguous = values.contiguous();
  HeadMatrix matrix;
  matrix.type = kernels::WeightType::kQ4_0;
  matrix.rows.resize(kernels::weight_row_bytes(matrix.type, contiguous.numel()));
  kernels::quantize_q4_0(contiguous.data_ptr<float>(), contiguous.numel(), matrix.rows.data());
  return matrix;
}

Status read(const char* name, const HeadMatrix& from, torch::Tensor to) {
  if (from.type != kernels::WeightType::kQ8_0 && from.type != kernels::WeightType::kQ4_0)
    return Error{ErrorCode::kUnsupported,
                 std::string("head: ") + name + ": only Q8_0 and Q4_0 are trained"};
  const std::int64_t n = to.numel();
  if (from.rows.size() != kernels::weight_row_bytes(from.type, n))
    return Error{ErrorCode::kInvalidInput, std::string("shape: head: ") + name};
  const auto values = torch::empty({n});  // `to` may be a view of several rows of another
  kernels::dequantize_file_row(from.type, from.rows.data(), n, values.data_ptr<float>());
  to.copy_(values.view(to.sizes()));
  return Ok{};
}

}  // namespace

HeadParameters HeadParameters::clone() const {
  return {fc.detach().clone(),      inner.detach().clone(),         down.detach().clone(),
          gain.detach().clone(),    source.detach().clone(),        bias.detach().clone(),
          outside.detach().clone(), candidate_gain.detach().clone()};
}

HeadParameters HeadParameters::zeros(std::int64_t hidden, std::int64_t inner) {
  return {torch::zeros({hidden, kHeadTaps * hidden}),
          torch::zeros({hidden + 2 * inner, 2 * hidden}),
          torch::zeros({hidden, inner}),
          torch::zeros({1}),
          torch::zeros({kHeadSources, hidden}),
          torch::zeros({kFusionClasses}),
          torch::zeros({1}),
          torch::zeros({kHeadSources})};
}

HeadParameters HeadParameters::initial(std::int64_t hidden, std::int64_t inner,
                                       std::int64_t n_vocab, std::uint64_t seed) {
  auto random = at::detail::createCPUGenerator(seed);
  const auto noise = [&](std::int64_t rows, std::int64_t columns) {
    return torch::empty({rows, columns}).normal_(0, 0.02, random);
  };
  HeadParameters head = zeros(hidden, inner);
  head.fc = noise(hidden, kHeadTaps * hidden);
  head.fc.narrow(1, (kHeadTaps - 1) * hidden, hidden).add_(torch::eye(hidden));
  head.inner = noise(hidden + 2 * inner, 2 * hidden);
  head.down = noise(hidden, inner);
  head.gain.fill_(0.1);
  const FusionTable table = FusionTable::initial();
  // At a gain of 0.1 the vocabulary's logits are nearly flat: their mass is about its size. A
  // traffic candidate of order 4 is one of the orders 3 and 2 as well, and each brings its part.
  const float lift = std::log(static_cast<float>(n_vocab)) - table.other;
  for (int fusion_class = 0; fusion_class < kFusionClasses; ++fusion_class) {
    head.bias.data_ptr<float>()[fusion_class] =
        table.bias[std::size_t(fusion_class)] + (fusion_class < kOwnClasses ? lift : lift / 3);
  }
  return head;
}

HeadParts HeadParameters::parts(std::vector<TokenId> vocab) const {
  const std::int64_t h = hidden(), i = inner_width();
  HeadParts parts;
  parts.hidden = h;
  parts.inner = i;
  parts.vocab = std::move(vocab);
  parts.fc = rounded(fc);
  parts.step = rounded(inner.narrow(0, 0, h));
  parts.gate = rounded(inner.narrow(0, h, i));
  parts.up = rounded(inner.narrow(0, h + i, i));
  parts.down = rounded(down);
  parts.gain = gain.item<float>();
  parts.outside = outside.item<float>();
  std::copy_n(bias.data_ptr<float>(), kFusionClasses, parts.bias.begin());
  parts.source.assign(source.data_ptr<float>(), source.data_ptr<float>() + source.numel());
  std::copy_n(candidate_gain.data_ptr<float>(), kHeadSources, parts.candidate_gain.begin());
  return parts;
}

Result<HeadParameters> HeadParameters::of(const HeadParts& parts) {
  const std::int64_t h = parts.hidden, i = parts.inner;
  if (std::int64_t(parts.source.size()) != kHeadSources * h)
    return Error{ErrorCode::kInvalidInput, "shape: head: source"};
  HeadParameters head = zeros(h, i);
  for (const auto& s :
       {read("fc", parts.fc, head.fc), read("step", parts.step, head.inner.narrow(0, 0, h)),
        read("gate", parts.gate, head.inner.narrow(0, h, i)),
        read("up", parts.up, head.inner.narrow(0, h + i, i)),
        read("down", parts.down, head.down)}) {
    if (!s) return s.error();
  }
  head.gain.fill_(parts.gain);
  head.outside.fill_(parts.outside);
  std::copy(parts.bias.begin(), parts.bias.end(), head.bias.data_ptr<float>());
  std::copy(parts.source.begin(), parts.source.end(), head.source.data_ptr<float>());
  std::ranges::copy(parts.candidate_gain, head.candidate_gain.data_ptr<float>());
  return head;
}

torch::Tensor unit_rms(const torch::Tensor& x) {
  return x * x.square().mean(-1, true).add(kHeadEpsilon).rsqrt();
}

torch::ScalarType fast_product_type() {
  static const bool amx = at::cpu::init_amx();
  return amx ? torch::kBFloat16 : torch::kFloat32;
}

torch::Tensor product(const torch::Tensor& a, const torch::Tensor& w) {
  if (w.scalar_type() == a.scalar_type()) return torch::mm(a, w.t());
  return torch::mm(a.to(w.scalar_type()), w.t()).to(a.scalar_type());
}

HeadParameters HeadParameters::rounded_copy() const {
  torch::NoGradGuard no_grad;
  HeadParameters copy = *this;
  for (torch::Tensor* t : {&copy.fc, &copy.inner, &copy.down})
    *t = t->detach().to(torch::kBFloat16).set_requires_grad(true);
  return copy;
}

torch::Tensor run_head(const HeadParameters& head, const torch::Tensor& x,
                       const std::vector<torch::Tensor>& embedded) {
  const std::int64_t h_width = head.hidden(), i_width = head.inner_width();
  auto h = product(x, head.fc);
  auto r = unit_rms(h);
  std::vector<torch::Tensor> states;
  for (const torch::Tensor& e : embedded) {
    const auto branches = product(torch::cat({e, r}, 1), head.inner);
    const auto gate = branches.narrow(1, h_width, i_width);
    const auto up = branches.narrow(1, h_width + i_width, i_width);
    h = h + branches.narrow(1, 0, h_width) + product(gate * torch::sigmoid(gate) * up, head.down);
    r = unit_rms(h);
    states.push_back(r);
  }
  return torch::cat(states);
}

HeadVocabulary::HeadVocabulary(std::vector<TokenId> tokens_in, const VocabularyRows& model,
                               torch::ScalarType type)
    : tokens(std::move(tokens_in)),
      rows(torch::empty({std::int64_t(tokens.size()), model.hidden()})),
      slot_of(std::size_t(model.n_vocab()), -1) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    model.output(tokens[i], rows.data_ptr<float>() + std::int64_t(i) * model.hidden());
    slot_of[std::size_t(tokens[i])] = std::int32_t(i);
  }
  rows = rows.to(type);
}

}  // namespace foretoken::trainer
