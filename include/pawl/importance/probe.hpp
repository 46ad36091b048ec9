#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "../core/context.hpp"
#include "../engine/linear_layers.hpp"
#include "produced_tensors.hpp"

namespace pawl {
inline namespace v0 {

/// Chooses the outputs that take part (the active ones): logits [n, C'] from logits [n, C], labels
/// [n] and task ids [n] (host; may be undefined). Outputs that do not take part are narrowed away
/// or -inf. Must treat rows alike.
using ActiveLogits =
    std::function<Tensor(Tensor const& logits, Tensor const& labels, Tensor const& tasks)>;

/// Which way per-sample gradients were computed.
struct PerSamplePath {
  bool batched = false;   ///< in batches, by one product per layer; false: one sample at a time
  bool compiled = false;  ///< in batches, without autograd's graph
  std::string obstacle;   ///< why not in batches
};

/// The network that an importance is measured on.
struct Probe {
  Model const& model;
  Arena const& arena;
  Seed seed = {};
  std::int64_t experience = 0;   ///< enters the random choices
  ActiveLogits active = {};      ///< empty: all outputs take part
  std::int64_t batch_size = 32;  ///< of readings by batch that leave it open
  std::int64_t chunk = 0;     ///< samples per pass where batches are possible; 0: `suitable_chunk`
  bool allow_batched = true;  ///< false: always one sample at a time
  bool reference = false;     ///< by autograd's graph and LibTorch's operations alone
  bool knows_chain = false;   ///< a chain was seen to give what the module's forward gives
  PerSamplePath* path = nullptr;  ///< where to report the way taken

  /// Logits [n, C'] of rows with their graph, in the mode the module is in. With `produced` the
  /// graph reaches back to the inputs, and linear layers go by pawl's products (not for reference).
  Tensor logits(Dataset const& data, Rows const& rows, ProducedTensors* produced = nullptr) const {
    model.route(rows.task);
    auto x = inputs(data, rows);
    if (produced != nullptr) {
      x = x.detach().requires_grad_(true);
      produced->note(x);
    }
    LinearLayers::Scope const layers(produced != nullptr && !reference);
    return active_of(model.forward(x), rows);
  }
  /// Inputs [n, ...] of rows.
  Tensor inputs(Dataset const& data, Rows const& rows) const {
    return data.normalise(rows.stored.to(arena.device()), arena.dtype());
  }
  /// The outputs that take part.
  Tensor active_of(Tensor const& z, Rows const& rows) const {
    return active ? active(z, rows.labels, rows.task) : z;
  }

  Generator generator(std::string_view name) const { return seed.generator(name, experience); }

  /// Positions [k] of the samples to look at: all, or `count` of them drawn from the seed.
  Tensor choose(std::int64_t size, std::int64_t count) const {
    if (count <= 0 || count >= size) return torch::arange(size, torch::kInt64);
    return torch::tensor(generator("aux.samples").sample(count, size));
  }
};

/// The network of a learner, over the outputs that are active in its loss. With active = batch
/// those are the labels of the whole data set, for a single sample has only its own.
inline Probe probe_of(Context& c, Dataset const& data) {
  auto const labels = std::get<0>(at::_unique(data.labels));
  return {.model = c.model,
          .arena = c.arena,
          .seed = c.seed,
          .experience = c.index,
          .active =
              [&c, labels](Tensor const& z, Tensor const&, Tensor const& tasks) {
                return c.active_logits(z, labels, tasks, z.size(0));
              },
          .batch_size = c.training.batch_size,
          .reference = c.training.reference(),
          .knows_chain = c.fast.chain.verified()};
}

}  // namespace v0
}  // namespace pawl
