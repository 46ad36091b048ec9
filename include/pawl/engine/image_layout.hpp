#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>

#include "../core/archive.hpp"
#include "../core/model.hpp"
#include "../core/random.hpp"
#include "../core/scopes.hpp"
#include "convolution_layers.hpp"

namespace pawl {
inline namespace v0 {

/// Whether images have their channels last in a network's convolutions. In float32 on the host that
/// makes them faster by a tenth to two thirds; results differ in their last bits. Modules with
/// grouped convolutions are left alone, which may be slower, and so are those with convolutions
/// that are not safe, and those of few convolutions whose large images become rows.
class ImageLayout {
 public:
  bool channels_last() const { return channels_last_; }

  /// To be there while the network's forward runs.
  ConvolutionLayers::Scope scope() const { return ConvolutionLayers::Scope(channels_last_); }

  /// Decides, by a look at the module and a trial on two of the inputs [n, ...]: its forward runs
  /// two or four times, and leaves buffers and generators as found.
  void decide(Model const& model, Tensor const& x, Tensor const& tasks) {
    channels_last_ = false;
    if (x.dim() < 2 || !x.is_cpu() || x.scalar_type() != torch::kFloat32) return;
    if (!has_plain_convolutions(*model.module)) return;
    auto const n = std::min<std::int64_t>(x.size(0), 2);
    channels_last_ =
        agrees(model, x.narrow(0, 0, n), tasks.defined() ? tasks.narrow(0, 0, n) : tasks);
  }

  void state(Archive& a) { a("channels_last", channels_last_); }

 private:
  static bool has_plain_convolutions(nn::Module const& module) {
    bool any = false;
    for (auto const& part : module.modules()) {
      auto const* layer = part->as<nn::Conv2dImpl>();
      if (layer == nullptr) continue;
      auto const& options = layer->options;
      auto const unsafe = ConvolutionLayers::writes_out_of_bounds(
          *options.kernel_size(), *options.stride(), options.in_channels());
      if (options.groups() != 1 || unsafe) return false;
      any = true;
    }
    return any;
  }

  /// Whether the module takes that and comes to the same logits, in eval mode and in the mode that
  /// it is in.
  static bool agrees(Model const& model, Tensor const& x, Tensor const& tasks) {
    model.route(tasks);
    auto const trains = model.module->is_training();
    return agrees_in(false, model, x) && (!trains || agrees_in(true, model, x));
  }

  /// Noise, which lies in memory as images do, cannot be compared.
  static bool agrees_in(bool training, Model const& model, Tensor const& x) {
    ModeScope mode(*model.module, training);
    torch::AutoGradMode grad(training);
    bool drawn = false;
    auto const logits = [&](bool met) {
      BufferScope buffers(*model.module);
      NoiseScope noise(Seed{}.generator("image_layout"));
      ConvolutionLayers::Scope const convolutions(met);
      auto const z = model.forward(x).detach();
      drawn = noise.drawn();
      return z;
    };
    try {
      auto const plain = logits(false);
      ConvolutionLayers::work() = {};
      auto const other = logits(true);
      auto const same =
          other.sizes() == plain.sizes() && (drawn || other.allclose(plain, 1e-3, 1e-5, true));
      return same && ConvolutionLayers::work().pays();
    } catch (std::exception const&) {
      return false;  // as it was: the plain layout is taken by all
    }
  }

  bool channels_last_ = false;
};

}  // namespace v0
}  // namespace pawl
