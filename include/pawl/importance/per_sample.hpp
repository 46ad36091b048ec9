#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "../core/context.hpp"

namespace pawl {
inline namespace v0 {

/// What an importance needs to know of the network it is measured on.
struct Probe {
  Model const& model;
  Arena const& arena;
  Normalise const& normalise;
  Seed seed;

  /// Logits [n, C'] of the outputs that take part (the active ones), from logits [n, C], labels [n]
  /// and tasks [n].
  std::function<Tensor(Tensor const& z, Tensor const& labels, Tensor const& tasks)> active;

  /// Logits of rows, with the graph to the parameters; the module is in the mode it is in.
  Tensor logits(Rows const& rows) const {
    model.route(rows.task);
    auto const z = model.forward(normalise(rows.stored.to(arena.device()), arena.dtype()));
    return active ? active(z, rows.labels, rows.task) : z;
  }

  /// Gradients of a scalar by the parameters, undefined where it does not depend on them.
  std::vector<Tensor> gradients(Tensor const& value, bool keep = false) const {
    return torch::autograd::grad({value}, arena.parameters(), {}, keep, false, true);
  }
};

inline Probe probe_of(Context& c, Dataset const& data) {
  return {c.model, c.arena, data.normalise, c.seed,
          [&c](Tensor const& z, Tensor const& labels, Tensor const& tasks) {
            return c.active_logits(z, labels, tasks, z.size(0));
          }};
}

/// Positions of the samples an importance looks at: all, or `count` of them, fixed by the seed.
inline Tensor chosen_samples(std::int64_t size, std::int64_t count, Seed seed) {
  if (count <= 0 || count >= size) return torch::arange(size, torch::kInt64);
  return torch::tensor(seed.generator("aux.samples").sample(count, size));
}

/// Calls `visit(rows)` for consecutive batches of the chosen samples, on the side: eval mode,
/// gradients on, the process-wide generator as found.
template <class F>
void visit_samples(Probe const& probe, Dataset const& data, Tensor const& positions,
                   std::int64_t batch, F&& visit) {
  ModeScope mode(*probe.model.module, false);
  NoiseScope noise(probe.seed.generator("model.aux"));
  torch::AutoGradMode grad(true);
  for (std::int64_t begin = 0; begin < positions.numel(); begin += batch) {
    auto const end = std::min(begin + batch, positions.numel());
    visit(data.read(positions.slice(0, begin, end), probe.arena.device()));
  }
}

/// Adds f(gradient) of every parameter to a flat sum [P].
template <class F>
void add_each(Arena const& arena, std::vector<Tensor> const& gradients, Tensor const& sum, F&& f) {
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (gradients[i].defined()) arena.parameter_view(sum, i).add_(f(gradients[i]));
  }
}

}  // namespace v0
}  // namespace pawl
