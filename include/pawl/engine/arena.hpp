#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/archive.hpp"
#include "../core/model.hpp"
#include "../device/fleet.hpp"
#include "../device/step_table.hpp"
#include "../products/linear.hpp"
#include "pages.hpp"

namespace pawl {
inline namespace v0 {

/// A buffer like the vector `model` [n], kept in `kept` from step to step: asking for memory may
/// take longer than the arithmetic in it. What it holds is of no account.
inline Tensor buffer_like(Tensor const& model, Tensor& kept) {
  auto const fits =
      kept.defined() && kept.numel() >= model.numel() && kept.options().type_equal(model.options());
  if (!fits) kept = torch::empty_like(model);
  return kept.numel() == model.numel() ? kept : kept.narrow(0, 0, model.numel());
}

/// All trainable parameters of a module as views of one flat tensor (slices aligned to 64 bytes),
/// and, once something asks for it, their gradients in another. Gaps between slices hold zeros.
///
/// `zero_grad`, another dtype or device, `torch::load` and replaced submodules unbind parameters
/// from the flat tensor; `ensure()` notices and binds anew, keeping the parameters' values.
class Arena {
 public:
  Arena() = default;
  explicit Arena(nn::Module& module) { bind(module); }

  /// Collects the trainable parameters of `module` and makes them views of `weights`.
  /// Throws, and changes nothing, when there are none or when they differ in dtype or device.
  void bind(nn::Module& module) {
    std::vector<Tensor> parameters;
    Layout layout;
    std::int64_t offset = 0;
    each_trainable(module, [&](std::string const& name, Tensor const& p) {
      parameters.push_back(p);
      layout.push_back({name, p.sizes().vec(), offset, p.numel()});
      offset = aligned(offset + p.numel());
    });
    require(!parameters.empty(),
            {"the module '", module.name(),
             "' has no trainable parameter; give one that has, or set requires_grad"});
    auto const& first = parameters.front();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      auto const& p = parameters[i];
      require(p.is_floating_point() && p.scalar_type() == first.scalar_type() &&
                  p.device() == first.device(),
              {"parameter '", layout[i].name, "' is ", p.scalar_type(), " on ", p.device(),
               " but '", layout[0].name, "' is ", first.scalar_type(), " on ", first.device(),
               "; give the whole module one floating type and device with module->to(...)"});
    }
    torch::NoGradGuard no_grad;
    weights_ = zeros(offset, first.options().requires_grad(false));
    parameters_ = std::move(parameters);
    layout_ = std::move(layout);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      auto view = parameter_view(weights_, i);
      view.copy_(parameters_[i]);
      parameters_[i].set_data(view);
      if (parameters_[i].grad().defined()) parameters_[i].mutable_grad() = Tensor();
    }
    gradient_ = Tensor();
    waiting_ = {};
    active_.assign(parameters_.size(), false);
    packed_ = false;
  }

  /// True while the first and the last parameter still lie where they were put (cheap, every step).
  bool bound() const {
    return !parameters_.empty() && at_home(0) && at_home(parameters_.size() - 1);
  }

  /// Binds anew when any parameter was moved, replaced or added. Returns whether it did.
  bool ensure(nn::Module& module) {
    std::size_t count = 0;
    bool home = true;
    each_trainable(module, [&](std::string const&, Tensor const& p) {
      home = home && count < parameters_.size() && p.is_same(parameters_[count]) && at_home(count);
      ++count;
    });
    if (home && count == parameters_.size()) return false;
    bind(module);
    return true;
  }

  Tensor const& weights() const { return weights_; }  ///< [P], the parameters themselves
  Layout const& layout() const { return layout_; }
  std::vector<Tensor> const& parameters() const { return parameters_; }
  torch::Dtype dtype() const { return weights_.scalar_type(); }
  torch::Device device() const { return weights_.device(); }

  /// Whether optimizers and penalties are to go by LibTorch's operations, one after another. A
  /// learner wants that with engine = reference alone.
  bool by_operations() const { return by_operations_; }
  void by_operations(bool wanted) { by_operations_ = wanted; }

  /// Which parameter a tensor is; -1: none.
  std::int64_t index_of(Tensor const& tensor) const {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (parameters_[i].is_same(tensor)) return static_cast<std::int64_t>(i);
    }
    return -1;
  }

  /// The part of a flat tensor [P] that belongs to parameter i, in its shape.
  Tensor parameter_view(Tensor const& flat, std::size_t i) const {
    return flat.narrow(0, layout_[i].offset, layout_[i].size).view(layout_[i].shape);
  }

  /// Where the slice of parameter i ends, with the gap after it: a multiple of 16.
  std::int64_t slice_end(std::size_t i) const {
    return layout_[i].offset + aligned(layout_[i].size);
  }

  /// Makes the gaps between slices of a flat tensor [P] zero.
  void clear_gaps(Tensor const& flat) const {
    for (std::size_t i = 0; i < layout_.size(); ++i) {
      auto const end = layout_[i].offset + layout_[i].size, gap = slice_end(i) - end;
      if (gap > 0) flat.narrow(0, end, gap).zero_();
    }
  }

  // ---- gradients ----

  /// Forgets the gradients of the last step: they become undefined, so that backward may hand over
  /// its buffers.
  void clear_gradients() {
    for (auto& p : parameters_) p.mutable_grad() = Tensor();
    waiting_ = {};
    packed_ = false;
    active_.assign(parameters_.size(), false);
  }

  /// Notes which parameters received a gradient in this backward pass. Those that received a part
  /// of it from autograd are formed.
  void note_active() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      if (!parameters_[i].grad().defined()) continue;
      active_[i] = true;
      form_waiting(i);
    }
  }

  /// Gradient [P] of this step: packed from the parameters on first use; undefined ones are 0.
  /// From then on `.grad` of every active parameter is a view of it, so edits reach everybody.
  Tensor const& gradient() {
    form_gradients();
    if (packed_) return gradient_;
    torch::NoGradGuard no_grad;
    make_gradient();
    c10::SmallVector<Tensor, 16> places, parts;
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      auto const place = parameter_view(gradient_, i);
      auto& gradient = parameters_[i].mutable_grad();
      if (!gradient.defined()) {
        place.zero_();
      } else if (!is_at(gradient, place)) {
        places.push_back(place);
        parts.push_back(dense(gradient));
        gradient = place;
      }
    }
    if (!places.empty()) at::_foreach_copy_(places, parts);  // one kernel on a device
    packed_ = true;
    return gradient_;
  }

  /// Adds to the gradient of parameter i; autograd may have left another part of it in `.grad`.
  /// With `later`, a first part keeps its two factors until somebody asks for the gradient. Call
  /// `seal` once every parameter has its gradient here.
  void take_gradient(std::size_t i, LayerGradient taken, bool later = false) {
    torch::NoGradGuard no_grad;
    active_[i] = true;
    auto const first = !waits(i) && !parameters_[i].grad().defined();
    if (later && first && may_wait(taken, parameters_[i])) {
      waiting_.d.resize(parameters_.size());
      waiting_.x.resize(parameters_.size());
      waiting_.d[i] = std::move(taken.d), waiting_.x[i] = std::move(taken.x);
    } else {
      form_waiting(i);
      form(i, taken);
    }
  }
  void seal() { packed_ = true; }

  /// Where the gradient of parameter i belongs, and that it was written there. -1: of none.
  Tensor room_for_gradient(std::int64_t i) {
    make_gradient();
    return parameter_view(gradient_, static_cast<std::size_t>(i));
  }
  void take_formed(std::int64_t i) {
    if (i < 0) return;
    active_[static_cast<std::size_t>(i)] = true;
    parameters_[static_cast<std::size_t>(i)].mutable_grad() = room_for_gradient(i);
  }

  /// Adds factor times the gradient of parameter i to it, which need not be formed for that.
  void add_gradient_to(std::size_t i, double factor) {
    if (waits(i)) {
      waiting_[i].add_to(parameters_[i], factor);
    } else {
      parameters_[i].add_(parameters_[i].grad(), factor);
    }
  }

  /// Whether gradients are waiting to be formed.
  bool has_unformed() const { return waiting_.any(); }

  /// Forms the gradients that are waiting, also after the step: until the next forward pass.
  void form_gradients() {
    if (!waiting_.any()) return;
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < parameters_.size(); ++i) form_waiting(i);
    waiting_ = {};
  }

  /// Takes `sum` [P] as the gradient of the step (after shards were added up).
  void set_gradient(Tensor const& sum) {
    torch::NoGradGuard no_grad;
    make_gradient();
    waiting_ = {};
    gradient_.copy_(sum);
    packed_ = true;
    bind_active();
  }

  bool packed() const { return packed_; }

  /// Gradients that are not formed yet, by parameter; empty lists where none is.
  struct Waiting {
    std::vector<Tensor> d{}, x{};
    bool any() const { return !d.empty(); }
    LayerGradient operator[](std::size_t i) const { return {d[i], x[i]}; }
  };

  /// The gradients of a step where they lie.
  struct Gradients {
    std::vector<Tensor> of_each{};
    Waiting waiting{};
    std::vector<bool> active{};
    bool packed = false;
  };
  Gradients gradients() const {
    Gradients found{{}, waiting_, active_, packed_};
    for (auto const& p : parameters_) found.of_each.push_back(p.grad());
    return found;
  }
  void restore(Gradients const& found) {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i].mutable_grad() = found.of_each[i];
    }
    waiting_ = found.waiting;
    active_ = found.active;
    packed_ = found.packed;
  }

  /// Packs gradients that autograd returned for the parameters (undefined where unused) into [P].
  Tensor pack(std::vector<Tensor> const& gradients) const {
    auto flat = torch::zeros_like(weights_);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined()) parameter_view(flat, i).copy_(gradients[i]);
    }
    return flat;
  }

  /// Which parameters are to be updated in this step: those with a gradient.
  std::vector<bool> const& active() const { return active_; }
  void activate(std::vector<bool> const& also) {
    form_gradients();
    for (std::size_t i = 0; i < active_.size(); ++i) active_[i] = active_[i] || also[i];
    if (packed_) bind_active();
  }

 private:
  /// Calls f(name, parameter) for every trainable parameter. LibTorch lists those of a module that
  /// is registered under two names twice; here they come once, under the first.
  template <class F>
  static void each_trainable(nn::Module& module, F&& f) {
    c10::SmallVector<void const*, 16> seen;
    for (auto const& item : module.named_parameters()) {
      void const* const identity = item.value().unsafeGetTensorImpl();
      if (!item.value().requires_grad()) continue;
      if (std::find(seen.begin(), seen.end(), identity) != seen.end()) continue;
      seen.push_back(identity);
      f(item.key(), item.value());
    }
  }

  static std::int64_t aligned(std::int64_t n) { return (n + 15) / 16 * 16; }

  /// Zeros [n]; on a device that learners share, beside those of the others.
  static Tensor zeros(std::int64_t n, at::TensorOptions const& options) {
    auto* fleet = options.device().is_cpu() || pawl::recording() ? nullptr : Fleet::here();
    return fleet != nullptr ? fleet->room(n, options) : zeros_on_huge_pages(n, options);
  }

  void make_gradient() {
    if (!gradient_.defined()) gradient_ = zeros(weights_.numel(), weights_.options());
  }

  bool waits(std::size_t i) const { return waiting_.any() && waiting_.d[i].defined(); }

  /// Whether a gradient gives the same bits when it is formed later, or added to y unformed. A
  /// factor may be a parameter, which moves.
  bool may_wait(LayerGradient const& gradient, Tensor const& y) const {
    auto const apart = [this](Tensor const& m) {
      return !m.storage().is_alias_of(weights_.storage());
    };
    return gradient.is_separable(y) && apart(gradient.d) && apart(gradient.x);
  }

  void form_waiting(std::size_t i) {
    if (!waits(i)) return;
    auto const taken = waiting_[i];
    waiting_.d[i] = waiting_.x[i] = Tensor();
    form(i, taken);
  }

  /// Adds to the gradient of parameter i, and puts it into its place.
  void form(std::size_t i, LayerGradient const& taken) {
    make_gradient();
    auto const place = parameter_view(gradient_, i);
    auto& gradient = parameters_[i].mutable_grad();
    if (gradient.defined()) {
      if (!is_at(gradient, place)) place.copy_(dense(gradient));
      taken.add_to(place, 1);
    } else {
      taken.form(place);
    }
    gradient = place;
  }

  static Tensor dense(Tensor const& gradient) {
    return gradient.is_sparse() ? gradient.to_dense() : gradient;
  }
  static bool is_at(Tensor const& gradient, Tensor const& place) {
    return !gradient.is_sparse() && gradient.data_ptr() == place.data_ptr();
  }

  bool at_home(std::size_t i) const {
    auto const& p = parameters_[i];
    if (p.numel() != layout_[i].size) return false;
    return p.numel() == 0 || p.data_ptr() == static_cast<char*>(weights_.data_ptr()) +
                                                 layout_[i].offset * static_cast<std::int64_t>(
                                                                         weights_.element_size());
  }

  void bind_active() {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i].mutable_grad() = active_[i] ? parameter_view(gradient_, i) : Tensor();
    }
  }

  std::vector<Tensor> parameters_;
  Layout layout_;
  Tensor weights_;
  Tensor gradient_;
  Waiting waiting_;
  std::vector<bool> active_;
  bool packed_ = false;
  bool by_operations_ = true;
};

}  // namespace v0
}  // namespace pawl
