#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include "batch_norm.hpp"
#include "met_operations.hpp"

namespace pawl {
inline namespace v0 {

/// The batch normalisation of any module, wherever its forward takes statistics of the batch:
/// images that have their channels last go through pawl's kernels, which are faster there and more
/// precise.
class NormalisationLayers : public MetLayers<NormalisationLayers> {
  friend class MetLayers<NormalisationLayers>;
  friend class MetOperations;

  static bool possible() { return products::uses_own_products(); }

  using Maybe = std::optional<Tensor>;
  static bool is_there(Maybe const& each) { return each && each->defined(); }

#ifdef PAWL_PRODUCTS
  struct Result {
    Tensor y;
    batch_norm::Moments moments;
    std::vector<double> inverse;  ///< 1 / sqrt(variance + eps), of each channel
  };

  static double number(Tensor const& of_channels, std::size_t c, double otherwise) {
    return of_channels.defined() ? of_channels.const_data_ptr<float>()[c] : otherwise;
  }

  static Result normalised(Tensor const& x, Tensor const& weight, Tensor const& bias, double eps) {
    batch_norm::Pixels const at(x);
    auto const* const from = x.const_data_ptr<float>();
    Result result{at::empty_like(x, x.options().requires_grad(false)), {from, at}, {}};
    auto const& [mean, variance] = result.moments;
    for (auto const v : variance) {
      result.inverse.push_back(v == 0 && eps == 0 ? 0 : 1 / std::sqrt(v + eps));
    }
    auto const scales =
        at.across([&](std::size_t c) { return number(weight, c, 1) * result.inverse[c]; });
    auto const shifts = at.across([&, &mean = mean](std::size_t c) {
      return number(bias, c, 0) - mean[c] * static_cast<double>(scales[c]);
    });
    batch_norm::scale(from, at, scales, shifts, result.y.mutable_data_ptr<float>());
    return result;
  }

  struct Normalised : torch::autograd::Function<Normalised> {
    using Context = torch::autograd::AutogradContext;
    using Tensors = torch::autograd::variable_list;

    static Tensor forward(Context* context, Tensor const& x, Maybe const& weight, Maybe const& bias,
                          double eps, std::optional<Result>* result) {
      *result = normalised(x, weight.value_or(Tensor()), bias.value_or(Tensor()), eps);
      context->save_for_backward({x, weight.value_or(Tensor())});
      context->saved_data["mean"] = (*result)->moments.mean;
      context->saved_data["inverse"] = (*result)->inverse;
      context->saved_data["eps"] = eps;
      return (*result)->y;
    }

    static Tensors backward(Context* context, Tensors const& gradients) {
      auto const saved = context->get_saved_variables();
      auto const &x = saved[0], &weight = saved[1];
      if (c10::GradMode::is_enabled()) return again(context, x, weight, gradients[0]);
      auto const g = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
      auto const means = context->saved_data["mean"].toDoubleVector();
      auto const inverse = context->saved_data["inverse"].toDoubleVector();
      auto const* const from = x.const_data_ptr<float>();
      auto const* const of_g = g.const_data_ptr<float>();
      batch_norm::Pixels const at(x);
      auto const all = static_cast<double>(at.pixels);
      auto const mean = at.across([&](std::size_t c) { return means[c]; });
      auto sums = batch_norm::gradient_sums(of_g, from, at, mean);
      for (std::size_t c = 0; c < means.size(); ++c) {
        sums.second[c] -= sums.first[c] * (means[c] - mean[c]);  // which was rounded
      }
      Tensors result(5);
      if (context->needs_input_grad(0)) {
        result[0] = at::empty_like(x, x.options().requires_grad(false));
        batch_norm::input_gradient(
            of_g, from, at, at.across([&](std::size_t c) { return sums.first[c] / all; }), mean,
            at.across(
                [&](std::size_t c) { return sums.second[c] * inverse[c] * inverse[c] / all; }),
            at.across([&](std::size_t c) { return number(weight, c, 1) * inverse[c]; }),
            result[0].mutable_data_ptr<float>());
      }
      auto const of_channels = [&](auto&& f) {
        auto y = at::empty({at.channels}, x.options().requires_grad(false));
        auto* const to = y.template mutable_data_ptr<float>();
        for (std::size_t c = 0; c < means.size(); ++c) to[c] = static_cast<float>(f(c));
        return y;
      };
      if (weight.defined()) {
        result[1] = of_channels([&](std::size_t c) { return sums.second[c] * inverse[c]; });
        result[2] = of_channels([&](std::size_t c) { return sums.first[c]; });
      }
      return result;
    }

   private:
    /// Gradients that can be differentiated once more.
    static Tensors again(Context* context, Tensor const& x, Tensor const& weight,
                         Tensor const& gradient) {
      MetOperations::Below const below;
      auto const y = at::batch_norm(x, weight, {}, {}, {}, true, 0,
                                    context->saved_data["eps"].toDouble(), false);
      Tensors inputs;
      for (auto const* input : {&x, &weight}) {
        if (input->defined() && input->requires_grad()) inputs.push_back(*input);
      }
      Tensors found;
      if (!inputs.empty()) found = torch::autograd::grad({y}, inputs, {gradient}, true, true, true);
      Tensors result(5);
      std::size_t next = 0;
      if (x.requires_grad()) result[0] = found[next++];
      if (weight.defined() && weight.requires_grad()) result[1] = found[next++];
      if (weight.defined()) result[2] = gradient.sum({0, 2, 3});
      return result;
    }
  };

  static bool suits(Tensor const& x, Maybe const& weight, Maybe const& bias,
                    Maybe const& running_mean, Maybe const& running_var) {
    if (x.dim() != 4 || x.numel() == 0 || !x.is_contiguous(at::MemoryFormat::ChannelsLast)) {
      return false;
    }
    if (is_there(weight) != is_there(bias)) return false;
    for (auto const* each : {&weight, &bias, &running_mean, &running_var}) {
      if (!is_there(*each)) continue;
      auto const plain = MetOperations::is_plain(**each) && (*each)->is_contiguous() &&
                         (*each)->numel() == x.size(1);
      if (!plain) return false;
    }
    return MetOperations::is_plain(x) && !at::autocast::is_autocast_enabled(at::kCPU);
  }

  /// LibTorch does not count this as a change of what a graph needs, either.
  static void move(Maybe const& running, double momentum, double factor,
                   std::vector<double> const& now) {
    if (!is_there(running)) return;
    auto* const kept = running->mutable_data_ptr<float>();
    for (std::size_t c = 0; c < now.size(); ++c) {
      kept[c] = static_cast<float>((1 - momentum) * kept[c] + momentum * factor * now[c]);
    }
  }

  static Tensor run(Tensor const& x, Maybe const& weight, Maybe const& bias,
                    Maybe const& running_mean, Maybe const& running_var, double momentum,
                    double eps) {
    auto const learns = [](Maybe const& each) { return is_there(each) && each->requires_grad(); };
    auto const recorded = (x.requires_grad() || learns(weight) || learns(bias)) &&
                          c10::GradMode::is_enabled() && MetOperations::above_autograd();
    std::optional<Result> result;
    Tensor y;
    if (recorded) {
      y = Normalised::apply(x, weight, bias, eps, &result);
    } else {
      result = normalised(x, weight.value_or(Tensor()), bias.value_or(Tensor()), eps);
      y = result->y;
    }
    auto const pixels = static_cast<double>(x.numel() / x.size(1));
    move(running_mean, momentum, 1, result->moments.mean);
    move(running_var, momentum, pixels / (pixels - 1), result->moments.variance);
    return y;
  }
#endif

  static Tensor batch_norm_(Tensor const& x, Maybe const& weight, Maybe const& bias,
                            Maybe const& running_mean, Maybe const& running_var, bool training,
                            double momentum, double eps, bool cudnn) {
    MetOperations::Below const below;
#ifdef PAWL_PRODUCTS
    if (training && wanted() && suits(x, weight, bias, running_mean, running_var)) {
      return run(x, weight, bias, running_mean, running_var, momentum, eps);
    }
#endif
    return at::batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps,
                          cudnn);
  }

  static void meet(torch::Library& aten) { aten.impl("batch_norm", TORCH_FN(batch_norm_)); }
};

}  // namespace v0
}  // namespace pawl
