#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "../core/context.hpp"
#include "draw.hpp"
#include "tasks.hpp"

namespace pawl {
inline namespace v0 {

// What strategies with a memory share: drawing for a step, appending to a batch, inserting, and
// forwarding apart.

/// How replayed rows pass through the network.
enum class Forward {
  joint,    ///< in one pass with the fresh rows: BatchNorm sees both
  separate  ///< in a pass of their own: BatchNorm keeps them apart and moves its statistics twice
};

/// Rows that a memory gave, as a batch takes them.
inline Rows replayed(Context const& c, Rows rows) {
  if (rows.size() == 0) return {};
  require(rows.stored.defined(), "the memory gave ", rows.size(),
          " rows without `stored`; a draw must fill `stored` [n, ...] and `y` [n]");
  if (!rows.labels.defined()) rows.labels = rows.y.cpu();
  return without_own_tasks(c, std::move(rows));
}

/// Rows to replay in this step; `n` = 0 asks for as many as there are fresh ones. `stream` names
/// the strategy's sub-stream.
inline Rows draw_rows(Context const& c, AnyMemory& memory, std::int64_t n,
                      std::string_view stream) {
  if (memory.empty()) return {};
  return replayed(c, memory.draw(n > 0 ? n : c.fresh.size(), c.generator(stream)));
}

/// Drops rows of the present experience. Rows that do not say their task stay.
inline Rows only_past(Context const& c, Rows rows) {
  if (!rows.task.defined()) return rows;
  auto const kept = rows.task.ne(memory_task(c)).nonzero().flatten();
  for (auto const column : Rows::columns()) {
    auto& values = rows.*column;
    if (values.defined()) values = values.index_select(0, kept.to(values.device()));
  }
  return rows;
}

/// Rows of past experiences alone. A memory that answers draws in its own way is asked for `n`
/// rows, and what it gives of the present experience is dropped.
inline Rows draw_past(Context const& c, AnyMemory& memory, std::int64_t n, Generator generator,
                      Sampler& sampler) {
  if (memory.empty()) return {};
  if (memory.slots() == nullptr && sampler.policy == Draw::uniform) {
    return replayed(c, only_past(c, memory.draw(n, generator)));
  }
  return replayed(c, sampler(memory, n, generator, other_tasks(memory_task(c))));
}

/// Appends the present shard's share of rows that were drawn for the whole step; `weight` is that
/// of each row in the supervised loss.
inline void append_share(Context const& c, Batch& batch, void const* owner, Rows const& drawn,
                         double weight = default_weight) {
  if (drawn.size() == 0) return;
  auto const slice = c.slice(drawn.size());
  batch.append(owner, drawn.slice(slice.begin, slice.end), drawn.size(), weight);
}

/// Logits [n, C] of rows in a pass of their own, in the mode of training and with a gradient;
/// undefined without rows. `stream` names the sub-stream of its noise (dropout).
inline Tensor forward_apart(Context const& c, Rows const& rows, std::string_view stream) {
  if (rows.size() == 0) return {};
  NoiseScope noise(c.generator(stream).fork(c.shard));
  auto const z = c.forward(c.inputs(rows.stored), rows.task);
  c.model.route(c.batch.task);
  return z;
}

/// Whether this is the last step on the present fresh rows: they are inserted after it, so that no
/// row replays itself.
inline bool last_pass(Context const& c) { return c.pass + 1 >= c.training.passes; }

/// Inserts rows in stream order; `stream` names the strategy's sub-stream.
inline void remember(Context const& c, AnyMemory& memory, Rows rows, std::string_view stream) {
  memory.insert(with_tasks(c, std::move(rows)), c.run_generator(stream));
}

/// Calls `take(Rows)` for a data set, 1000 rows at a time, in its order.
template <class F>
void for_each_chunk(Dataset const& data, torch::Device device, F&& take) {
  constexpr std::int64_t chunk = 1000;
  for (std::int64_t begin = 0; begin < data.size(); begin += chunk) {
    auto const end = std::min(begin + chunk, data.size());
    take(data.read(torch::arange(begin, end, torch::kInt64), device));
  }
}

}  // namespace v0
}  // namespace pawl
