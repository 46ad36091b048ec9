#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

#include "../core/archive.hpp"
#include "../core/model.hpp"
#include "../core/scopes.hpp"

namespace pawl {
inline namespace v0 {

/// How images lie in memory on their way into a network. In float32 on the host LibTorch's
/// convolutions are faster by a tenth to two thirds where an image's channels lie side by side
/// ("channels last"); results differ in their last bits. What could go wrong is left alone: grouped
/// convolutions may be slower, a module that calls `view` may refuse such inputs, and LibTorch 2.13
/// writes out of bounds in the backward pass of a 1x1 convolution with a stride and fewer channels
/// than a vector register holds.
class ImageLayout {
 public:
  bool channels_last() const { return channels_last_; }

  /// Inputs [n, c, h, w] as the network is to have them; others as they are.
  Tensor operator()(Tensor const& x) const {
    return channels_last() && x.dim() == 4 ? laid_out(x) : x;
  }

  /// Decides, by a look at the module and a trial on two of the inputs.
  void decide(Model const& model, Tensor const& x, Tensor const& tasks) {
    channels_last_ = false;
    if (x.dim() != 4 || !x.is_cpu()) return;
    if (x.scalar_type() != torch::kFloat32 || !has_plain_convolutions(*model.module)) return;
    auto const n = std::min<std::int64_t>(x.size(0), 2);
    channels_last_ =
        agrees(model, x.narrow(0, 0, n), tasks.defined() ? tasks.narrow(0, 0, n) : tasks);
  }

  void state(Archive& a) { a("channels_last", channels_last_); }

 private:
  /// Where there is one channel, both layouts are the same numbers, and strides say which is meant.
  static Tensor laid_out(Tensor const& x) {
    auto const last = x.contiguous(at::MemoryFormat::ChannelsLast);
    auto const h = x.size(2), w = x.size(3);
    return x.size(1) == 1 ? last.as_strided(x.sizes(), {h * w, 1, w, 1}) : last;
  }

  static bool has_plain_convolutions(nn::Module const& module) {
    bool any = false;
    for (auto const& part : module.modules()) {
      auto const* layer = part->as<nn::Conv2dImpl>();
      if (layer == nullptr) continue;
      if (layer->options.groups() != 1 || writes_out_of_bounds(*layer)) return false;
      any = true;
    }
    return any;
  }

  static bool writes_out_of_bounds(nn::Conv2dImpl const& layer) {
    auto const& options = layer.options;
    auto const kernel = *options.kernel_size(), stride = *options.stride();
    auto const pointwise = kernel[0] == 1 && kernel[1] == 1;
    return pointwise && (stride[0] > 1 || stride[1] > 1) && options.in_channels() < 16;
  }

  /// Whether the module takes such inputs and comes to the same logits.
  static bool agrees(Model const& model, Tensor const& x, Tensor const& tasks) {
    torch::NoGradGuard no_grad;
    ModeScope mode(*model.module, false);  // neither statistics nor noise
    model.route(tasks);
    auto const plain = model.forward(x);
    try {
      auto const other = model.forward(laid_out(x));
      return other.sizes() == plain.sizes() && other.allclose(plain, 1e-3, 1e-5, true);
    } catch (std::exception const&) {
      return false;  // as it was: the plain layout is taken by all
    }
  }

  bool channels_last_ = false;
};

}  // namespace v0
}  // namespace pawl
