#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

// What cuts the batch of a step into slices, and puts together what each of them gave.

/// Half-open range of rows.
struct Slice {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};

/// The rows of shard `shard` among `n` rows cut into `shards` nearly equal, consecutive slices.
inline Slice shard_slice(std::int64_t n, std::int64_t shard, std::int64_t shards) {
  return {n * shard / shards, n * (shard + 1) / shards};
}

/// The buffers of a module (BatchNorm statistics) under shards: every shard starts from the values
/// at the start of the step, and the step ends with the mean over the shards (counters move once).
class BufferMean {
 public:
  BufferMean(nn::Module& module, std::int64_t shards) : shards_(shards) {
    if (shards == 1) return;
    for (auto const& buffer : module.buffers()) {
      buffers_.push_back(buffer);
      start_.push_back(buffer.detach().clone());
      moved_.push_back(torch::zeros_like(buffer));
    }
  }

  void begin_shard() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < buffers_.size(); ++i) buffers_[i].copy_(start_[i]);
  }
  void end_shard() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
      if (!averaged(i)) continue;
      auto const way = buffers_[i] - start_[i];  // no number where a mask holds infinities
      moved_[i].add_(way.masked_fill(buffers_[i].eq(start_[i]), 0));
    }
  }
  void finish() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
      if (!averaged(i)) continue;  // a counter stands where the last shard left it
      buffers_[i].copy_(start_[i] + moved_[i] / static_cast<double>(shards_));
    }
  }

 private:
  bool averaged(std::size_t i) const { return buffers_[i].is_floating_point(); }

  std::int64_t shards_;
  std::vector<Tensor> buffers_, start_, moved_;
};

/// Adds values up in a fixed binary tree over their index, in whatever order of calls the tree
/// allows: the result depends on the number of values alone, never on who computed them.
class TreeSum {
 public:
  void add(Tensor value) {
    std::int64_t level = 0;
    while (!levels_.empty() && levels_.back() == level) {
      value = sums_.back() + value;
      levels_.pop_back(), sums_.pop_back();
      ++level;
    }
    levels_.push_back(level);
    sums_.push_back(std::move(value));
  }
  /// The sum; starts afresh.
  Tensor take() {
    while (sums_.size() > 1) {
      auto const right = sums_.back();
      sums_.pop_back();
      sums_.back() = sums_.back() + right;
    }
    auto const sum = sums_.empty() ? Tensor{} : sums_.back();
    forget();
    return sum;
  }
  void forget() { levels_.clear(), sums_.clear(); }

 private:
  std::vector<std::int64_t> levels_;
  std::vector<Tensor> sums_;  ///< of 2^level values each
};

}  // namespace v0
}  // namespace pawl
