#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "../products/linear.hpp"
#include "flat_parameters.hpp"
#include "quadratic_pull.hpp"
#include "waiting_gradients.hpp"

namespace pawl {
inline namespace v0 {

/// What is trained: the parameters as one flat tensor and, once something asks for it, the gradient
/// of the present step as another.
///
/// The gradient of a parameter lies in its `.grad`, where autograd left it, or in its place in the
/// flat tensor; or it waits, in two factors, until somebody asks for it, which may never happen.
class Arena : public FlatParameters {
 public:
  Arena() = default;
  explicit Arena(nn::Module& module) { bind(module); }

  /// Takes the trainable parameters of `module`. Throws, and changes nothing, when there are none
  /// or when they differ in dtype or device.
  void bind(nn::Module& module) {
    FlatParameters::bind(module);
    forget();
  }
  /// The same when any of them was moved, replaced or added. Returns whether it did.
  bool ensure(nn::Module& module) {
    auto const anew = FlatParameters::ensure(module);
    if (anew) forget();
    return anew;
  }

  /// Forgets the gradients of the last step: they become undefined, so that backward may hand over
  /// its buffers.
  void clear_gradients() {
    for (auto& p : parameters()) p.mutable_grad() = Tensor();
    start_step();
  }

  /// Notes which parameters received a gradient in this backward pass. Those that received a part
  /// of it from autograd are formed.
  void note_active() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      if (!parameters()[i].grad().defined()) continue;
      active_[i] = true;
      form_waiting(i);
    }
  }

  /// Gradient [P] of this step: packed from the parameters on first use; undefined ones are 0.
  /// From then on `.grad` of every active parameter is a view of it, so edits reach everybody.
  Tensor const& gradient() {
    pack(std::numeric_limits<std::int64_t>::max());
    return gradient_;
  }

  /// For who goes over flat tensors range by range: packs the gradient, but for parts of `large`
  /// parameters that autograd left elsewhere, and nobody else holds. Calls f(begin, end) for each
  /// range whose gradient is one vector, see `gradient_at`; all ranges are all weights, and each
  /// begins at a multiple of 16.
  template <class F>
  void each_range(std::int64_t large, F&& f) {
    pack(large);
    std::int64_t begin = 0;
    auto const finish = [&](std::int64_t end) {
      if (begin < end) f(begin, end);
    };
    for (std::size_t i = 0; !packed() && i < parameters().size(); ++i) {
      if (!is_apart(i)) continue;
      finish(layout()[i].offset);
      f(layout()[i].offset, slice_end(i));
      begin = slice_end(i);
    }
    finish(weights().numel());
  }

  /// The gradient of a part of such a range, which is packed where it has to be; edits reach
  /// everybody.
  Tensor gradient_at(std::int64_t begin, std::int64_t end) {
    if (packed_ == Packed::nothing) gradient();
    auto const i = packed() ? 0 : parameter_at(begin);
    if (!packed() && is_apart(i) && end > slice_end(i)) gradient();
    if (packed() || !is_apart(i)) return range_of(gradient_, begin, end);
    auto const first = layout()[i].offset;
    return range_of(parameters()[i].grad().view({-1}), begin - first, end - first);
  }

  /// Adds to the gradient of parameter i; autograd may have left another part of it in `.grad`.
  /// With `later`, a first part keeps its two factors until somebody asks for the gradient. Call
  /// `seal` once every parameter has its gradient here.
  void take_gradient(std::size_t i, LayerGradient taken, bool later = false) {
    torch::NoGradGuard no_grad;
    active_[i] = true;
    auto const first = !waits(i) && !parameters()[i].grad().defined();
    if (later && first && may_wait(taken, parameters()[i])) {
      waiting_.keep(i, std::move(taken), parameters().size());
    } else {
      form_waiting(i);
      form(i, taken);
    }
  }
  void seal() { packed_ = Packed::all; }

  /// Where the gradient of parameter i belongs, and that it was written there. -1: of none.
  Tensor room_for_gradient(std::int64_t i) {
    make_gradient();
    return parameter_view(gradient_, static_cast<std::size_t>(i));
  }
  void take_formed(std::int64_t i) {
    if (i < 0) return;
    active_[static_cast<std::size_t>(i)] = true;
    parameters()[static_cast<std::size_t>(i)].mutable_grad() = room_for_gradient(i);
  }

  /// Whether the gradient of parameter i is not formed yet.
  bool waits(std::size_t i) const { return waiting_.has(i); }

  /// Subtracts `rate` times a pull from parameter i, whose gradient waits, when that gradient is
  /// added to it.
  void pull_first(std::size_t i, QuadraticPull const& pull, double rate) {
    waiting_.pull_first(i, pull, rate);
  }

  /// Adds factor times the gradient of parameter i to it, which need not be formed for that, and
  /// subtracts a pull that waits.
  void add_gradient_to(std::size_t i, double factor) {
    auto const& w = parameters()[i];
    if (waits(i)) {
      waiting_.add_to(i, w, factor);
    } else {
      w.add_(w.grad(), factor);
    }
  }

  /// Whether gradients are waiting to be formed.
  bool has_unformed() const { return waiting_.any(); }

  /// Forms the gradients that are waiting, also after the step: until the next forward pass.
  void form_gradients() {
    if (!waiting_.any()) return;
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < parameters().size(); ++i) form_waiting(i);
    waiting_.clear();
  }

  /// Takes `sum` [P] as the gradient of the step (after shards were added up).
  void set_gradient(Tensor const& sum) {
    torch::NoGradGuard no_grad;
    make_gradient();
    waiting_.clear();
    gradient_.copy_(sum);
    packed_ = Packed::all;
    bind_active();
  }

  bool packed() const { return packed_ == Packed::all; }

  /// What of a gradient lies in its place in the flat tensor.
  enum class Packed { nothing, small_parts, all };

  /// The gradients of a step where they lie.
  struct Gradients {
    std::vector<Tensor> of_each{};
    WaitingGradients waiting{};
    std::vector<bool> active{};
    Packed packed = Packed::nothing;
  };
  Gradients gradients() const {
    Gradients found{{}, waiting_, active_, packed_};
    for (auto const& p : parameters()) found.of_each.push_back(p.grad());
    return found;
  }
  void restore(Gradients const& found) {
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      parameters()[i].mutable_grad() = found.of_each[i];
    }
    waiting_ = found.waiting;
    active_ = found.active;
    packed_ = found.packed;
  }

  /// Which parameters are to be updated in this step: those with a gradient.
  std::vector<bool> const& active() const { return active_; }
  void activate(std::vector<bool> const& also) {
    form_gradients();
    for (std::size_t i = 0; i < active_.size(); ++i) active_[i] = active_[i] || also[i];
    if (packed()) bind_active();
  }

  /// Whether optimizers and penalties are to go by LibTorch's operations, one after another. A
  /// learner wants that with engine = reference alone.
  bool by_operations() const { return by_operations_; }
  void by_operations(bool wanted) { by_operations_ = wanted; }

 private:
  void forget() {
    gradient_ = Tensor();
    start_step();
  }
  void start_step() {
    waiting_.clear();
    packed_ = Packed::nothing;
    active_.assign(parameters().size(), false);
  }

  /// Packs the gradient, but for parts of at least `large` numbers that may stay elsewhere.
  void pack(std::int64_t large) {
    form_gradients();
    if (packed()) return;
    torch::NoGradGuard no_grad;
    make_gradient();
    c10::SmallVector<Tensor, 16> places, parts;
    auto const before = std::exchange(packed_, Packed::all);
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      auto& gradient = parameters()[i].mutable_grad();
      if (!gradient.defined()) {
        if (before == Packed::nothing) parameter_view(gradient_, i).zero_();
      } else if (is_apart(i)) {
        if (layout()[i].size >= large && may_stay(i)) {
          packed_ = Packed::small_parts;
          continue;
        }
        places.push_back(parameter_view(gradient_, i));
        parts.push_back(dense(gradient));
        gradient = places.back();
      }
    }
    if (!places.empty()) at::_foreach_copy_(places, parts);  // one kernel on a device
  }

  /// Whether the gradient of parameter i lies elsewhere.
  bool is_apart(std::size_t i) const {
    auto const& gradient = parameters()[i].grad();
    if (!gradient.defined()) return false;
    if (gradient.is_sparse()) return true;
    auto const bytes = layout()[i].offset * static_cast<std::int64_t>(gradient_.element_size());
    return gradient.const_data_ptr() !=
           static_cast<char const*>(gradient_.const_data_ptr()) + bytes;
  }
  /// Whether the gradient of parameter i is one vector, like the weights, and nobody else's. Ranges
  /// that are no multiple of 16 could change last bits, where LibTorch rounds what is left of them
  /// in another way.
  bool may_stay(std::size_t i) const {
    auto const& gradient = parameters()[i].grad();
    return layout()[i].size % 16 == 0 && gradient.is_contiguous() && !gradient.is_neg() &&
           gradient.options().type_equal(weights().options()) && !gradient.requires_grad() &&
           gradient.use_count() == 1 && gradient.storage().use_count() == 1;
  }

  void make_gradient() {
    if (!gradient_.defined()) gradient_ = zeros(weights().numel(), weights().options());
  }

  /// Whether a gradient gives the same bits when it is formed later, or added to y unformed. A
  /// factor may be a parameter, which moves.
  bool may_wait(LayerGradient const& gradient, Tensor const& y) const {
    auto const apart = [this](Tensor const& m) {
      return !m.storage().is_alias_of(weights().storage());
    };
    return gradient.is_separable(y) && apart(gradient.d) && apart(gradient.x);
  }

  void form_waiting(std::size_t i) {
    if (!waits(i)) return;
    form(i, waiting_.take(i, slice(weights(), i)));
  }

  /// Adds to the gradient of parameter i, and puts it into its place.
  void form(std::size_t i, LayerGradient const& taken) {
    make_gradient();
    auto const place = parameter_view(gradient_, i);
    auto& gradient = parameters()[i].mutable_grad();
    if (gradient.defined()) {
      if (is_apart(i)) place.copy_(dense(gradient));
      taken.add_to(place, 1);
    } else {
      taken.form(place);
    }
    gradient = place;
  }

  static Tensor dense(Tensor const& gradient) {
    return gradient.is_sparse() ? gradient.to_dense() : gradient;
  }

  void bind_active() {
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      parameters()[i].mutable_grad() = active_[i] ? parameter_view(gradient_, i) : Tensor();
    }
  }

  Tensor gradient_;
  WaitingGradients waiting_;
  std::vector<bool> active_;
  Packed packed_ = Packed::nothing;
  bool by_operations_ = true;
};

}  // namespace v0
}  // namespace pawl
