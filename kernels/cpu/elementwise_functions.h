// The element-wise kernels of one instruction set.
#pragma once

#include "activations.h"
#include "foretoken/kernels/convert.h"
#include "foretoken/kernels/elementwise.h"

namespace foretoken::kernels {

struct ElementwiseFunctions {
  decltype(&kernels::rms_norm) rms_norm;
  decltype(&kernels::rope) rope;
  decltype(&kernels::swiglu) swiglu;
  decltype(&kernels::add) add;
  decltype(&kernels::encode_half) encode_half;
  decltype(&kernels::decode_half) decode_half;
  QuantizeFunctions quantize;
};

const ElementwiseFunctions& elementwise_scalar();
const ElementwiseFunctions& elementwise_avx2();
const ElementwiseFunctions& elementwise_avx512();
const ElementwiseFunctions& elementwise_active();  // of active_isa()

}  // namespace foretoken::kernels
