#pragma once

#include <cmath>
#include <cstdint>

#include "options.hpp"
#include "random.hpp"

namespace pawl {
inline namespace v0 {

/// Where the weights of a layer start.
enum class InitScheme {
  standard,         ///< of the framework: weights and biases uniform in +-1/sqrt(fan_in)
  xavier,           ///< Glorot and Bengio, AISTATS 2010: +-sqrt(6 / (fan_in + fan_out)), biases 0
  kaiming,          ///< He et al., ICCV 2015: +-sqrt(6 / fan_in), biases 0
  normal,           ///< normal weights, constant biases
  truncated_normal  ///< the same, drawn again beyond two deviations
};

/// How the linear and convolution layers of a model are initialised; normalisation layers start at
/// 1 and 0.
struct Init {
  InitScheme scheme = InitScheme::standard;
  double deviation = 0.1;
  double bias = 0.1;

  void describe(Options& o) {
    o("init", scheme, {"default", "xavier", "kaiming", "normal", "truncated_normal"},
      "start of the layers; default is the framework's, +-1/sqrt(fan_in)");
    o("init_std", deviation, at_least(0), "deviation of the weights under (truncated_)normal");
    o.only_if(gaussian(), "init = normal or truncated_normal");
    o("init_bias", bias, {}, "biases under (truncated_)normal");
    o.only_if(gaussian(), "init = normal or truncated_normal");
  }

  /// Draws one layer: weight [out, in, ...], bias [out] or undefined.
  void operator()(Tensor const& weight, Tensor const& bias_values, Generator generator) const {
    draw(weight, bias_values, weight.size(0), generator);
  }

  /// Draws one output row of a linear layer, weight [d], bias [] or undefined, whatever the other
  /// rows are. `outputs` is the number of rows; 0 where it is not known, and then xavier looks at
  /// the inputs alone.
  void row(Tensor const& weight, Tensor const& bias_value, std::int64_t outputs,
           Generator generator) const {
    draw(weight.unsqueeze(0), bias_value.defined() ? bias_value.unsqueeze(0) : bias_value, outputs,
         generator);
  }

 private:
  bool gaussian() const {
    return scheme == InitScheme::normal || scheme == InitScheme::truncated_normal;
  }

  void draw(Tensor const& weight, Tensor const& bias_values, std::int64_t outputs,
            Generator generator) const {
    auto const fan_in = static_cast<double>(weight[0].numel());
    auto const fan_out = static_cast<double>(outputs) * static_cast<double>(weight[0][0].numel());
    auto const weights = generator.fork(0), biases = generator.fork(1);
    auto bound = 1 / std::sqrt(fan_in);
    if (scheme == InitScheme::xavier) bound = std::sqrt(6 / (fan_in + fan_out));
    if (scheme == InitScheme::kaiming) bound = std::sqrt(6 / fan_in);
    if (gaussian()) {
      fill_normal(weight, 0, deviation, weights, scheme == InitScheme::truncated_normal);
    } else {
      fill_uniform(weight, -bound, bound, weights);
    }
    if (!bias_values.defined()) return;
    torch::NoGradGuard no_grad;
    if (scheme == InitScheme::standard) return fill_uniform(bias_values, -bound, bound, biases);
    bias_values.fill_(gaussian() ? bias : 0);
  }
};

/// Initialises every linear and convolution layer inside a module: layer i, in the order of
/// registration, from the sub-seed (init, i). Never touches the process-wide generator.
inline void initialise(nn::Module& module, Init const& init, Seed seed) {
  std::int64_t layer = 0;
  for (auto const& part : module.modules(/*include_self=*/false)) {
    if (auto const* linear = part->as<nn::LinearImpl>()) {
      init(linear->weight, linear->bias, seed.generator("init", layer++));
    } else if (auto const* convolution = part->as<nn::Conv2dImpl>()) {
      init(convolution->weight, convolution->bias, seed.generator("init", layer++));
    }
  }
}

}  // namespace v0
}  // namespace pawl
