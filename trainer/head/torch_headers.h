// The parts of LibTorch that the trainer uses: the whole of <torch/torch.h> takes half as long
// again to compile.
#pragma once

#include <ATen/Parallel.h>
#include <torch/optim/adamw.h>
#include <torch/types.h>
