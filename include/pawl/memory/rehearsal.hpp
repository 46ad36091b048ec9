#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
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

/// Rows that a memory gave, with both columns of labels, where the model is. Throws when a column
/// is missing or of another length.
inline Rows completed(Context const& c, Rows rows) {
  if (!rows.y.defined()) rows.y = rows.labels;
  if (!rows.y.defined() && !rows.stored.defined()) return {};
  auto const n = rows.size();
  for (auto const column : Rows::columns()) {
    auto const& values = rows.*column;
    auto const needed = column == &Rows::stored || column == &Rows::y;
    require(values.defined() ? values.dim() > 0 && values.size(0) == n : !needed,
            "the memory gave rows whose columns do not fit together; a draw must fill `stored` [n, "
            "...] and `y` [n], and any other column with n values");
  }
  if (n == 0) return {};
  auto const device = c.arena.device();
  rows.labels = (rows.labels.defined() ? rows.labels : rows.y).to(torch::kCPU, torch::kInt64);
  rows.labels = rows.labels.contiguous();
  rows.y = rows.y.to(device, torch::kInt64);
  rows.stored = rows.stored.to(device);
  if (rows.logits.defined()) rows.logits = rows.logits.to(device);
  return rows;
}

/// Rows that a memory gave when it was asked with `generator`, as a batch takes them.
inline Rows replayed(Context const& c, Rows rows, Generator generator) {
  rows = without_own_tasks(c, completed(c, std::move(rows)));
  return c.varied(std::move(rows), generator.fork(-1).fork(c.total_steps));
}

/// All rows of a memory. One that keeps them in its own way is asked for more than any can hold.
inline Rows all_rows(Context const& c, AnyMemory& memory, Generator generator) {
  if (memory.slots() != nullptr) return memory.contents();
  return completed(c, memory.draw(std::numeric_limits<std::int64_t>::max(), generator));
}

/// Rows to replay in this step; `n` = 0 asks for as many as there are fresh ones. `stream` names
/// the strategy's sub-stream.
inline Rows draw_rows(Context const& c, AnyMemory& memory, std::int64_t n,
                      std::string_view stream) {
  if (memory.empty()) return {};
  auto const generator = c.generator(stream);
  return replayed(c, memory.draw(n > 0 ? n : c.fresh.size(), generator), generator);
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
    return replayed(c, only_past(c, memory.draw(n, generator)), generator);
  }
  return replayed(c, sampler(memory, n, generator, other_tasks(memory_task(c))), generator);
}

/// The present shard's share of rows that were drawn for the whole step.
inline Rows share(Context const& c, Rows const& drawn) {
  auto const slice = c.slice(drawn.size());
  return drawn.slice(slice.begin, slice.end);
}

/// Appends the present shard's share of a draw; `weight` is that of each row in the supervised
/// loss.
inline void append_share(Context const& c, Batch& batch, void const* owner, Rows const& drawn,
                         double weight = default_weight) {
  batch.append(owner, share(c, drawn), drawn.size(), weight);
}

/// Logits [n, C] of rows in a pass of their own, in the mode of training and with a gradient;
/// undefined without rows. `stream` names the sub-stream of its noise (dropout).
inline Tensor forward_apart(Context const& c, Rows const& rows, std::string_view stream) {
  if (rows.size() == 0) return {};
  NoiseScope noise(c.generator(stream).fork(c.shard), c.arena.device());
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
