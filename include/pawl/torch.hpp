#pragma once

// The only header of pawl that names LibTorch headers: the slimmest set that the core and the
// models need. Users include further `torch/nn/...` headers themselves.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/InferSize.h>
#include <ATen/TensorIterator.h>
#include <ATen/TensorUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/FunctionRef.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/library.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/nn/pimpl.h>
#include <torch/optim/optimizer.h>
#include <torch/serialize/archive.h>
#include <torch/types.h>
#include <torch/utils.h>

// Graphs of recorded work: of devices that register theirs (in LibTorch 2.13 CUDA does not), and of
// CUDA, where this LibTorch has it.
#if __has_include(<ATen/core/GraphImplInterface.h>)
#define PAWL_ANY_GRAPH 1
#include <ATen/core/GraphImplInterface.h>
#endif
#if __has_include(<c10/cuda/impl/cuda_cmake_macros.h>) && __has_include(<cuda_runtime_api.h>)
#define PAWL_CUDA_GRAPH 1
#include <ATen/cuda/CUDAGraph.h>
#endif

namespace pawl {
inline namespace v0 {

using torch::Tensor;
namespace nn = torch::nn;

}  // namespace v0
}  // namespace pawl
