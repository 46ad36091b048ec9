#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>

#include "../products/linear.hpp"
#include "arena.hpp"
#include "met_operations.hpp"

namespace pawl {
inline namespace v0 {

/// The linear layers of any module, wherever its forward uses them: products of rows [n, in] with a
/// weight [out, in], transposed, are pawl's, and so are those of their gradients. The module's
/// forward runs as it is, and its graph leads where it would lead otherwise, so whoever
/// differentiates finds all gradients in it. Only in a pass that is collected, gradients of
/// parameters that nobody listens to are handed over instead, before they are formed.
class LinearLayers : public MetLayers<LinearLayers> {
 public:
  /// Within it, gradients of an arena's parameters that linear layers find while this thread
  /// differentiates one loss go to `take(index, gradient)`; autograd finds those of other
  /// parameters, and what else adds to these.
  class Collecting {
   public:
    using Take = c10::function_ref<void(std::size_t, LayerGradient const&)>;

    /// `arena` and `take` outlive it.
    Collecting(Arena const& arena, Tensor const& loss, Take take)
        : arena_(arena), take_(take), outer_(std::exchange(here(), this)) {
      if (!loss.requires_grad()) return;
      // A pass inside of that one, of some operation's own, is not meant.
      loss.register_hook([pass = pass_](Tensor const&) { *pass = pass_here(); });
    }
    ~Collecting() { here() = outer_; }
    Collecting(Collecting const&) = delete;
    Collecting& operator=(Collecting const&) = delete;

   private:
    friend class LinearLayers;

    static Collecting*& here() {
      thread_local Collecting* innermost = nullptr;
      return innermost;
    }
    static int pass_here() { return torch::autograd::get_current_graph_task_id(); }

    bool take(Tensor const& parameter, LayerGradient const& gradient) const {
      if (*pass_ != pass_here()) return false;
      auto const i = arena_.index_of(parameter);
      if (i >= 0) take_(static_cast<std::size_t>(i), gradient);
      return i >= 0;
    }

    Arena const& arena_;
    Take take_;
    Collecting* outer_;
    std::shared_ptr<int> pass_ = std::make_shared<int>(-1);
  };

  /// Whether a node of autograd's graph is such a layer. Its edges lead to x [n, in], to the weight
  /// [in, out] and, where there is one, to the bias [out].
  static bool is_product(torch::autograd::Node const& node) {
    return dynamic_cast<torch::autograd::CppNode<Product> const*>(&node) != nullptr;
  }

 private:
  friend class MetLayers<LinearLayers>;
  friend class MetOperations;

  static bool possible() { return products::uses_own_products(); }

  using Bias = std::optional<Tensor>;

  /// x [n, in] times w [in, out], plus bias [out] where there is one.
  struct Product : torch::autograd::Function<Product> {
    using Context = torch::autograd::AutogradContext;
    using Tensors = torch::autograd::variable_list;

    static Tensor forward(Context* context, Tensor const& x, Tensor const& w, Bias const& bias) {
      context->set_materialize_grads(false);
      context->save_for_backward(
          {w.requires_grad() ? x : Tensor(), x.requires_grad() ? w : Tensor()});
      note(context, "weight", weight_behind(w));
      if (bias) {
        context->saved_data["biased"] = true;
        note(context, "bias", unheard(*bias));
      }
      return product(x, w, bias);
    }

    static Tensors backward(Context* context, Tensors const& gradients) {
      Tensors all(3);
      if (!gradients[0].defined()) return all;
      auto const saved = context->get_saved_variables();
      auto const &x = saved[0], &w = saved[1];
      auto const biased = context->saved_data.count("biased") > 0;
      auto const needs = [&](std::size_t i) {
        return (i < 2 || biased) && context->needs_input_grad(i);
      };
      if (c10::GradMode::is_enabled()) {  // it may be differentiated once more
        auto const& d = gradients[0];
        if (needs(0)) all[0] = d.mm(w.t());
        if (needs(1)) all[1] = d.t().mm(x).t();
        if (needs(2)) all[2] = d.sum(0);
        return all;
      }
      auto const d = gradients[0].contiguous();
      if (needs(0)) {
        all[0] = at::empty({d.size(0), w.size(0)}, d.options());
        products::input_gradient(all[0], d, w.t());
      }
      if (needs(1) && !hand_over(context, "weight", {d, x})) {
        auto const formed = at::empty({d.size(1), x.size(1)}, d.options());
        LayerGradient{d, x}.form(formed);
        all[1] = formed.t();
      }
      if (needs(2) && !hand_over(context, "bias", {d, {}})) all[2] = d.sum(0);
      return all;
    }

   private:
    static void note(Context* context, char const* name, Tensor const& parameter) {
      if (parameter.defined()) context->saved_data[name] = parameter;
    }
    static bool hand_over(Context const* context, char const* name, LayerGradient const& gradient) {
      auto const* const collecting = Collecting::here();
      if (collecting == nullptr) return false;
      auto const found = context->saved_data.find(name);
      if (found == context->saved_data.end()) return false;
      auto const parameter = found->second.toTensor();
      return unheard(parameter).defined() && collecting->take(parameter, gradient);
    }
  };

  static Tensor product(Tensor const& x, Tensor const& w, Bias const& bias) {
    auto y = at::empty({x.size(0), w.size(1)}, x.options().requires_grad(false));
    products::linear(y, x, w.t(), bias.value_or(Tensor()));
    return y;
  }

  /// A tensor, if it is one that gradients go to and nobody listens there; else undefined.
  static Tensor unheard(Tensor const& leaf) {
    namespace impl = torch::autograd::impl;
    if (!leaf.requires_grad() || !leaf.is_leaf() || !impl::hooks(leaf).empty()) return {};
    auto const end = impl::try_get_grad_accumulator(leaf);
    auto const heard = (end && has_hooks(*end)) || impl::post_acc_grad_hooks(leaf);
    return heard ? Tensor() : leaf;
  }
  static bool has_hooks(torch::autograd::Node& node) {
    return !(node.pre_hooks().empty() && node.tensor_pre_hooks().empty() &&
             node.post_hooks().empty() && node.retains_grad_hooks().empty());
  }

  /// The same of what w [in, out] is the transposed of.
  static Tensor weight_behind(Tensor const& w) {
    auto const node = w.grad_fn();
    if (!node || has_hooks(*node)) return {};
    auto const name = node->name();
    if (name != "TBackward0" && name != "TransposeBackward0") return {};
    auto const next = node->next_edge(0).function;
    auto const* end = dynamic_cast<torch::autograd::AccumulateGrad const*>(next.get());
    return end == nullptr ? Tensor() : unheard(end->variable);
  }

  static bool suits(Tensor const& x, Tensor const& w, Bias const& bias) {
    if (x.dim() != 2 || w.dim() != 2 || x.size(1) != w.size(0)) return false;
    if (x.numel() == 0 || w.numel() == 0) return false;
    if (w.stride(0) != 1 || w.stride(1) != w.size(0) || !x.is_contiguous()) return false;
    if (bias && (bias->dim() != 1 || bias->size(0) != w.size(1) || !MetOperations::is_plain(*bias)))
      return false;
    return MetOperations::is_plain(x) && MetOperations::is_plain(w) &&
           !at::autocast::is_autocast_enabled(at::kCPU);
  }
  static Tensor run(Tensor const& x, Tensor const& w, Bias const& bias) {
    auto const learns = x.requires_grad() || w.requires_grad() || (bias && bias->requires_grad());
    auto const recorded = learns && c10::GradMode::is_enabled() && MetOperations::above_autograd();
    return recorded ? Product::apply(x, w, bias) : product(x, w, bias);
  }

  static Tensor addmm(Tensor const& bias, Tensor const& x, Tensor const& w, at::Scalar const& beta,
                      at::Scalar const& alpha) {
    MetOperations::Below const below;
    auto const plain = beta.equal(1) && alpha.equal(1);
    return plain && wanted() && suits(x, w, bias) ? run(x, w, bias)
                                                  : at::addmm(bias, x, w, beta, alpha);
  }
  static Tensor mm(Tensor const& x, Tensor const& w) {
    MetOperations::Below const below;
    return wanted() && suits(x, w, {}) ? run(x, w, {}) : at::mm(x, w);
  }

  static void meet(torch::Library& aten) {
    aten.impl("addmm", TORCH_FN(addmm));
    aten.impl("mm", TORCH_FN(mm));
  }
};

}  // namespace v0
}  // namespace pawl
