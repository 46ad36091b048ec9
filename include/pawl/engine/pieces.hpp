#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "arena.hpp"

namespace pawl {
inline namespace v0 {

// What optimizers update as one vector.

/// Neighbouring weights: a part of every flat tensor [P].
struct Block {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  bool empty() const { return begin >= end; }
  Tensor of(Tensor const& flat) const { return range_of(flat, begin, end); }
  Tensor gradient(Arena& arena) const { return arena.gradient_at(begin, end); }
};

/// Weights in a block: for each thread as many as let eight flat tensors stay in its core's cache
/// while several operations go over them, and as LibTorch gives to a thread at least. A multiple of
/// 16, as slices of the arena are.
inline std::int64_t block_size() { return std::int64_t{32768} * at::get_num_threads(); }

/// Calls `f(block)` for one block after another of these weights, or of some of them; on a device
/// once, for all.
template <class F>
void each_block(Tensor const& weights, Block const& some, F&& f) {
  auto const size = weights.is_cpu() ? block_size() : some.end - some.begin;
  for (auto begin = some.begin; begin < some.end; begin += size) {
    f(Block{begin, std::min(begin + size, some.end)});
  }
}
template <class F>
void each_block(Tensor const& weights, F&& f) {
  each_block(weights, {0, weights.numel()}, f);
}

/// A run of neighbouring active parameters that have taken the same number of steps, and so share
/// their scalars: it is updated as one vector, gaps between slices included.
struct Run {
  std::int64_t offset = 0;
  std::int64_t size = 0;
  std::int64_t steps = 0;  ///< taken before this one

  Block all() const { return {offset, offset + size}; }
  Block within(Block const& block) const {
    return {std::max(offset, block.begin), std::min(offset + size, block.end)};
  }
};

using Runs = c10::SmallVector<Run, 2>;

/// Cuts the active parameters into runs and counts this step for each of them.
inline Runs count_step(Arena const& arena, std::vector<std::int64_t>& steps) {
  auto const& layout = arena.layout();
  steps.resize(layout.size(), 0);
  Runs runs;
  bool adjacent = false;
  for (std::size_t i = 0; i < layout.size(); ++i) {
    auto const active = arena.active()[i];
    if (active) {
      if (!adjacent || runs.back().steps != steps[i]) {
        runs.push_back({layout[i].offset, 0, steps[i]});
      }
      runs.back().size = arena.slice_end(i) - runs.back().offset;
      ++steps[i];
    }
    adjacent = active;
  }
  return runs;
}

/// Calls `f(w, g, of, taken)` for what is updated as one vector within a block; see below.
template <class F>
void each_piece(Arena& arena, Runs const& runs, Block const& block, F&& f) {
  for (auto const& run : runs) {
    auto const piece = run.within(block);
    if (piece.empty()) continue;
    auto const of = [&](Tensor const& flat) { return piece.of(flat); };
    f(of(arena.weights()), piece.gradient(arena), of, run.steps);
  }
}

/// Calls `f(w, g, of, taken)`, after `count_step`, for every contiguous range that shares one step
/// count: its weights and gradient, `of(flat)`, the same range of any flat tensor [P], and the
/// steps that it has taken before this one. Where the gradient is not packed, ranges are single
/// parameters.
template <class F>
void each_piece(Arena& arena, Runs const& runs, std::vector<std::int64_t> const& steps, F&& f) {
  if (arena.packed()) return each_piece(arena, runs, Block{0, arena.weights().numel()}, f);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    if (!arena.active()[i]) continue;
    auto const of = [&](Tensor const& flat) { return arena.parameter_view(flat, i); };
    f(arena.parameters()[i], arena.parameters()[i].grad(), of, steps[i] - 1);
  }
}

/// Whether LibTorch has kernels that update such weights in one pass over memory.
inline bool has_kernel(Tensor const& weights) {
  auto const type = weights.scalar_type();
  return weights.is_cpu() && (type == torch::kFloat32 || type == torch::kFloat64);
}

}  // namespace v0
}  // namespace pawl
