// The element-wise kernels of one instruction set.
#pragma once

#include "activations.h"
#include "foretoken/kernels/elementwise.h"

namespace foretoken::kernels {

struct ElementwiseFunctions {
  decltype(&kernels::rms_norm) rms_norm;
  decltype(&kernels::rope) rope;
  decltype(&kernels::swiglu) swiglu;
  decltype(&kernels::add) add;
  QuantizeFunctions quantize;
};

const ElementwiseFunctions& elementwise_scalar();
const ElementwiseFunctions& elementwise_avx2();
const ElementwiseFunctions& elementwise_avx512();
const ElementwiseFunctions& elementwise_active();  // of active_isa()

}  // namespace foretoken::kernels
