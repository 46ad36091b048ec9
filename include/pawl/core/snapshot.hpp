#pragma once

#include <utility>
#include <vector>

#include "context.hpp"

namespace pawl {
inline namespace v0 {

/// The weights and buffers of a module at one moment, in storage of their own. One P-sized copy.
struct Snapshot {
  Tensor weights;  ///< [P]; undefined: nothing was taken
  Layout layout;
  std::vector<Tensor> buffers;

  bool empty() const { return !weights.defined(); }

  static Snapshot of(Arena const& arena, nn::Module const& module) {
    Snapshot taken{arena.weights().clone(), arena.layout(), {}};
    for (auto const& buffer : module.buffers()) taken.buffers.push_back(buffer.detach().clone());
    return taken;
  }
  static Snapshot of(Context const& context) { return of(context.arena, *context.model.module); }

  void state(Archive& a) {
    if (a.mode == Archive::Mode::grow) return;  // a snapshot keeps the layout it was taken with
    a("weights", weights);
    auto count = static_cast<std::int64_t>(buffers.size());
    auto spans = static_cast<std::int64_t>(layout.size());
    a("buffers", count);
    a("spans", spans);
    buffers.resize(static_cast<std::size_t>(count));
    layout.resize(static_cast<std::size_t>(spans));
    for (std::size_t i = 0; i < buffers.size(); ++i) a("buffer" + std::to_string(i), buffers[i]);
    for (std::size_t i = 0; i < layout.size(); ++i) {
      auto const key = "span" + std::to_string(i);
      a(key + ".name", layout[i].name);
      a(key + ".shape", layout[i].shape);
      a(key + ".offset", layout[i].offset);
      a(key + ".size", layout[i].size);
    }
  }
};

/// Points a module's parameters and buffers at a snapshot for a scope, without copying weights.
/// Parameters that the snapshot lacks (heads added later) stay; those that have grown since have
/// their old shape.
class WithWeights {
 public:
  WithWeights(Context const& context, Snapshot const& snapshot)
      : WithWeights(context.arena, *context.model.module, snapshot) {}

  WithWeights(Arena const& arena, nn::Module& module, Snapshot const& snapshot) {
    torch::NoGradGuard no_grad;
    std::size_t next = 0;
    for (std::size_t i = 0; i < arena.parameters().size(); ++i) {
      auto const& name = arena.layout()[i].name;
      auto k = next;
      while (k < snapshot.layout.size() && snapshot.layout[k].name != name) ++k;
      if (k == snapshot.layout.size()) continue;
      next = k + 1;
      auto const& span = snapshot.layout[k];
      point(arena.parameters()[i],
            snapshot.weights.narrow(0, span.offset, span.size).view(span.shape));
    }
    auto const buffers = module.buffers();
    for (std::size_t i = 0; i < std::min(buffers.size(), snapshot.buffers.size()); ++i) {
      point(buffers[i], snapshot.buffers[i]);
    }
  }
  ~WithWeights() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < moved_.size(); ++i) moved_[i].set_data(homes_[i]);
  }
  WithWeights(WithWeights const&) = delete;
  WithWeights& operator=(WithWeights const&) = delete;

 private:
  void point(Tensor tensor, Tensor const& elsewhere) {
    moved_.push_back(tensor);
    homes_.push_back(tensor.detach());
    tensor.set_data(elsewhere);
  }
  std::vector<Tensor> moved_, homes_;
};

}  // namespace v0
}  // namespace pawl
