#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "../products/linear.hpp"
#include "flat_parameters.hpp"
#include "quadratic_pull.hpp"

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

  /// Those of FlatParameters, which also forget gradients.
  void bind(nn::Module& module) {
    FlatParameters::bind(module);
    forget();
  }
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
    form_gradients();
    if (packed_) return gradient_;
    torch::NoGradGuard no_grad;
    make_gradient();
    c10::SmallVector<Tensor, 16> places, parts;
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      auto const place = parameter_view(gradient_, i);
      auto& gradient = parameters()[i].mutable_grad();
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
    auto const first = !waits(i) && !parameters()[i].grad().defined();
    if (later && first && may_wait(taken, parameters()[i])) {
      waiting_.resize(parameters().size());
      waiting_[i] = {std::move(taken)};
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
    parameters()[static_cast<std::size_t>(i)].mutable_grad() = room_for_gradient(i);
  }

  /// Whether the gradient of parameter i is not formed yet.
  bool waits(std::size_t i) const { return !waiting_.empty() && waiting_[i].gradient.defined(); }

  /// Subtracts `rate` times a pull from parameter i, whose gradient waits, when that gradient is
  /// added to it.
  void pull_first(std::size_t i, QuadraticPull const& pull, double rate) {
    waiting_[i].pull = pull, waiting_[i].rate = rate;
  }

  /// Adds factor times the gradient of parameter i to it, which need not be formed for that, and
  /// subtracts a pull that waits.
  void add_gradient_to(std::size_t i, double factor) {
    auto const& w = parameters()[i];
    if (!waits(i)) {
      w.add_(w.grad(), factor);
    } else if (auto const pull = std::exchange(waiting_[i].pull, {})) {
      auto const down = pull->down(w, waiting_[i].rate);
      waiting_[i].gradient.add_to(w, factor, &down);
    } else {
      waiting_[i].gradient.add_to(w, factor);
    }
  }

  /// Whether gradients are waiting to be formed.
  bool has_unformed() const { return !waiting_.empty(); }

  /// Forms the gradients that are waiting, also after the step: until the next forward pass.
  void form_gradients() {
    if (waiting_.empty()) return;
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
    packed_ = true;
    bind_active();
  }

  bool packed() const { return packed_; }

  /// What waits for a parameter; nothing, if the gradient is undefined.
  struct Waiting {
    LayerGradient gradient{};             ///< that is not formed yet
    std::optional<QuadraticPull> pull{};  ///< on the whole slice, before the gradient is added
    double rate = 0;
  };

  /// The gradients of a step where they lie.
  struct Gradients {
    std::vector<Tensor> of_each{};
    std::vector<Waiting> waiting{};  ///< none, or one for each parameter
    std::vector<bool> active{};
    bool packed = false;
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
    if (packed_) bind_active();
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
    packed_ = false;
    active_.assign(parameters().size(), false);
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
    auto const taken = std::exchange(waiting_[i], {});
    if (taken.pull) taken.pull->subtract_from(slice(weights(), i), taken.rate);
    form(i, taken.gradient);
  }

  /// Adds to the gradient of parameter i, and puts it into its place.
  void form(std::size_t i, LayerGradient const& taken) {
    make_gradient();
    auto const place = parameter_view(gradient_, i);
    auto& gradient = parameters()[i].mutable_grad();
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

  void bind_active() {
    for (std::size_t i = 0; i < parameters().size(); ++i) {
      parameters()[i].mutable_grad() = active_[i] ? parameter_view(gradient_, i) : Tensor();
    }
  }

  Tensor gradient_;
  std::vector<Waiting> waiting_;
  std::vector<bool> active_;
  bool packed_ = false;
  bool by_operations_ = true;
};

}  // namespace v0
}  // namespace pawl
