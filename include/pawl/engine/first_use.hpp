#pragma once

#include "convolution_layers.hpp"
#include "linear_layers.hpp"
#include "normalisation_layers.hpp"

namespace pawl {
inline namespace v0 {

/// Does, once in a process, what LibTorch must not do for the first time in several threads at
/// once. Whoever comes while it is done waits.
inline void settle_first_use() {
  static bool const settled = [] {
    // MKL computes LibTorch's exp, sqrt and others, and looks for its code in the first call. Of
    // two threads that call at the same time, one may be given other code, and other last bits.
    at::ones({64}, torch::kFloat32).exp();
    // Then the dispatcher is changed before learners use it.
    return LinearLayers::available() && ConvolutionLayers::available() &&
           NormalisationLayers::available();
  }();
  (void)settled;
}

}  // namespace v0
}  // namespace pawl
