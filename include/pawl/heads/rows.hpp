#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../core/error.hpp"
#include "../core/init.hpp"
#include "../core/random.hpp"

namespace pawl {
inline namespace v0 {

/// Draws one output row of a linear layer of `outputs` rows (0: not known): weights [d], and the
/// bias [] where there is one. By default as a fresh `nn::Linear(d, C)` would have it, whatever C
/// is: uniform in (-1/sqrt(d), 1/sqrt(d)). They are float32 numbers in any type, so that a row does
/// not depend on whether the module became float64 before or after.
inline void fill_row(Tensor const& weight, Tensor const& bias, Generator generator,
                     Init const& init = {}, std::int64_t outputs = 0) {
  auto const d = weight.numel();
  if (init.scheme != InitScheme::standard) {
    auto const single = torch::TensorOptions(torch::kFloat32);
    auto const w = torch::empty({d}, single), b = torch::empty({}, single);
    init.row(w, b, outputs, generator);
    torch::NoGradGuard no_grad;
    weight.copy_(w);
    if (bias.defined()) bias.copy_(b);
    return;
  }
  auto const bound = 1 / std::sqrt(static_cast<double>(d));
  auto const draws = torch::empty({d + 1}, torch::kFloat32);
  fill_uniform(draws, -bound, bound, generator);
  torch::NoGradGuard no_grad;
  weight.copy_(draws.narrow(0, 0, d));
  if (bias.defined()) bias.copy_(draws[d]);
}

/// Gives a parameter more rows. It stays the same leaf and the old rows keep their bits; new ones
/// are 0.
inline void grow_rows(Tensor const& parameter, std::int64_t rows) {
  torch::NoGradGuard no_grad;
  auto shape = parameter.sizes().vec();
  auto const old = shape[0];
  shape[0] = rows;
  auto const grown = torch::zeros(shape, parameter.options().requires_grad(false));
  grown.narrow(0, 0, old).copy_(parameter.detach());
  parameter.mutable_grad() = Tensor();
  // While a graph of an earlier step is alive, so is its node that expects gradients of the old
  // shape, and the next forward would use it.
  if (auto* meta = torch::autograd::impl::get_autograd_meta(parameter)) {
    std::lock_guard<std::mutex> lock(meta->mutex_);
    meta->grad_accumulator_.reset();
  }
  parameter.set_data(grown);
}

/// Rows that a head needs for these labels: the highest label + 1.
inline std::int64_t rows_for(std::vector<std::int64_t> const& labels) {
  std::int64_t rows = 0;
  for (auto const label : labels) {
    require(label >= 0, {"a head was told of label ", label,
                         "; labels must be outputs of the network, 0 or above"});
    rows = std::max(rows, label + 1);
  }
  return rows;
}

/// Throws unless x is what a head of width d takes: features [N, d].
inline void check_features(Tensor const& x, std::int64_t d, char const* head) {
  require(x.dim() == 2 && x.size(1) == d, {head, ": got features ", x.sizes(), " but takes [N, ", d,
                                           "]; give the head the width of the layer before it"});
}

}  // namespace v0
}  // namespace pawl
