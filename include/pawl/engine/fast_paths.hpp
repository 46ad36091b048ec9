#pragma once

#include <cstdint>
#include <string>

#include "../core/model.hpp"
#include "arena.hpp"
#include "compiled_chain.hpp"
#include "image_layout.hpp"
#include "linear_layers.hpp"
#include "normalisation_layers.hpp"

namespace pawl {
inline namespace v0 {

/// What was found out about a model that makes its steps faster. Where that depends on the model,
/// it is tried out beside the model's own forward before it is taken; all of it changes no more
/// than the last bits of what is learned.
class FastPaths {
 public:
  CompiledChain chain;  ///< the model without autograd's graph, where it is a chain of layers
  mutable CompiledChain side_chain;  ///< the same with buffers of its own, for passes on the side
  ImageLayout images;                ///< how images lie in memory, in convolutions
  std::string capture;  ///< "captured" where a device replayed steps, or why it did not

  /// Looks for a chain in a module; at the start of an experience, and when parameters have moved.
  void look(nn::Module const& module, Arena const& arena) {
    chain = {}, side_chain = {};
    chain.compile(module, arena);
    side_chain.compile(module, arena);
    side_gradient_ = Tensor();
    lately_ = false;
    has_layers_ = false;
  }

  /// Tries the model out on the inputs of an experience's first step, `now` steps after the learner
  /// was made. Not again within 100 steps: experiences may be as short as a step.
  void try_out(Model const& model, Tensor const& x, Tensor const& tasks, std::int64_t now) {
    lately_ = tried_ >= 0 && now - tried_ < 100;
    if (lately_) return;
    tried_ = now;
    images.decide(model, x, tasks);
  }

  /// Whether inputs go through the chain, which is compared with the model's own forward first.
  bool compiled(Model const& model, Tensor const& x) {
    if (!chain.takes(x)) return false;
    if (chain.verified()) return true;
    if (!(lately_ && agreed_)) compare(model, x);
    if (agreed_) {
      chain.verify();
    } else {
      chain.refuse("the model's forward is more than its chain of layers");
      side_chain = {};
    }
    return agreed_;
  }

  /// While it lives, layers of modules go in faster ways: convolutions as was found out, linear
  /// ones and normalisation behind convolutions by pawl's kernels, if that is `wanted`.
  struct Layers {
    LinearLayers::Scope linear;
    ConvolutionLayers::Scope convolutions;
    NormalisationLayers::Scope normalisations;
  };
  Layers layers(bool wanted) const {
    return {LinearLayers::Scope(wanted), images.scope(),
            NormalisationLayers::Scope(wanted && images.channels_last())};
  }

  /// Notes that a step's forward had linear layers that went that way.
  void note_layers() { has_layers_ = true; }

  /// Logits [N, C] of inputs [N, ...] in eval mode, without a graph. Of many, by the chain, where
  /// that gives what the model's own forward gives for the first of them (heads look at the tasks
  /// of all rows), else with linear layers by pawl's products, where that is `wanted`.
  Tensor scores(Model const& model, Tensor const& x, bool wanted) {
    auto const many =
        x.size(0) >= products::sparse_rows && x.is_cpu() && products::leaves_out_zeros();
    if (many && model.heads.empty() && chain.verified() && side_chain.takes(x)) {
      auto const some = model.forward(x.narrow(0, 0, 4));
      auto const all = side_chain.logits(x);
      if (agree(all.narrow(0, 0, 4), some)) return all;
    }
    auto const by = layers(wanted && many);
    return model.forward(x);
  }

  /// Before a step is recorded.
  void forget_buffers() {
    chain.forget_buffers();
    side_chain.forget_buffers();
    side_gradient_ = Tensor();
  }

  /// Room [P] for a gradient on the side, with zeros between the parameters: the memory of the last
  /// one, unless somebody holds it.
  Tensor side_gradient(Arena const& arena) {
    auto& kept = side_gradient_;
    auto const& weights = arena.weights();
    // Whoever was given it holds the tensor, or a view, which holds its storage.
    auto const free = kept.defined() && kept.use_count() == 1 && kept.storage().use_count() == 1;
    if (free && kept.numel() == weights.numel() && kept.options().type_equal(weights.options())) {
      arena.clear_gaps(kept);  // whoever had it may have written there
    } else {
      kept = zeros_on_huge_pages(weights.numel(), weights.options());
    }
    return kept;
  }

  /// "compiled", or what else is fast and why it is not; on a device also whether steps were
  /// captured.
  std::string text() const {
    auto const before = capture.empty() ? "" : capture + ", ";
    if (chain.compiled()) return before + "compiled";
    std::string const layout = images.channels_last() ? "channels_last" : "";
    std::string const layers = has_layers_ ? "layers" : "";
    auto const both = layout + (layout.empty() || layers.empty() ? "" : ", ") + layers;
    return before + (both.empty() ? "reference" : both) + ": " + chain.obstacle();
  }

 private:
  void compare(Model const& model, Tensor const& x) {
    torch::NoGradGuard no_grad;
    auto const own = model.forward(x);
    // In bfloat16, products of ours differ from those of the layers by more than may pass here.
    auto const z = products::may_use_bfloat16() ? chain.plain_logits(x) : chain.logits(x);
    agreed_ = agree(z, own);
  }

  static bool agree(Tensor const& z, Tensor const& own) {
    return own.sizes() == z.sizes() && z.allclose(own, 1e-3, 1e-5, true);
  }

  Tensor side_gradient_;
  std::int64_t tried_ = -1;  // when the model was last tried out; -1: not since it changed
  bool lately_ = false;      // that was shortly before this experience
  bool has_layers_ = false;  // that went by pawl's products in a step
  bool agreed_ = false;      // the chain with the model's own forward, when last compared
};

}  // namespace v0
}  // namespace pawl
