#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// Rows as a memory gives and takes them: stored inputs and columns with the same first dimension.
struct Rows {
  Tensor stored{};  ///< [n, ...] inputs as the source stores them (not normalised, not augmented)
  Tensor y{};       ///< [n] int64, on the device of the model
  Tensor labels{};  ///< [n] int64, the same on the host
  Tensor task{};    ///< [n] int64 task ids on the host; undefined where the scenario gives none
  Tensor logits{};  ///< [n, C] stored logits; undefined unless a strategy keeps them
  Tensor id{};  ///< [n] int64 on the host: row numbers in the source, or what the caller put there

  std::int64_t size() const { return y.defined() ? y.size(0) : 0; }

  Rows slice(std::int64_t begin, std::int64_t end) const {
    if (begin == 0 && end == size()) return *this;
    Rows part;
    for (auto const column : columns()) {
      if ((this->*column).defined()) part.*column = (this->*column).slice(0, begin, end);
    }
    return part;
  }

  /// The columns, for code that treats all alike.
  static constexpr std::array<Tensor Rows::*, 6> columns() {
    return {&Rows::stored, &Rows::y, &Rows::labels, &Rows::task, &Rows::logits, &Rows::id};
  }
};

/// The numbers of an int64 column on the host; none where it is undefined.
inline at::IntArrayRef host_column(Tensor const& column) {
  if (!column.defined()) return {};
  return {column.data_ptr<std::int64_t>(), static_cast<std::size_t>(column.numel())};
}

/// A default row weight: the row counts 1/R in the supervised loss, R = number of such rows in the
/// step.
inline constexpr double default_weight = std::numeric_limits<double>::quiet_NaN();

/// Rows that one strategy appended to a batch.
struct Part {
  void const* owner = nullptr;  ///< the strategy; nullptr for the fresh rows
  std::int64_t begin = 0;       ///< first row in the batch
  std::int64_t size = 0;        ///< number of rows in this batch
  std::int64_t step_size = 0;   ///< number of rows of this part in the whole step, over all shards
  double weight = default_weight;  ///< absolute weight of each row in the supervised loss
  Rows rows{};                     ///< what was appended, with its columns
};

/// The rows of one step (or of one shard of it): fresh ones first, then what strategies appended.
struct Batch {
  Tensor x;       ///< [N, ...] network inputs; set when all strategies have extended the batch
  Tensor y{};     ///< [N] int64, on the device of the model
  Tensor task{};  ///< [N] int64 on the host, or undefined
  std::int64_t fresh = 0;           ///< number of fresh rows; they come first
  c10::SmallVector<Part, 2> parts;  ///< parts[0] holds the fresh rows

  std::int64_t size() const { return parts.empty() ? 0 : parts.back().begin + parts.back().size; }

  /// Appends rows. `step_size`: how many rows the owner appends in the whole step, summed over
  /// shards, for losses to divide by; `weight`: absolute weight of each in the supervised loss (0:
  /// seen by the forward pass alone).
  void append(void const* owner, Rows rows, std::int64_t step_size,
              double weight = default_weight) {
    if (rows.size() == 0) return;
    parts.push_back({.owner = owner,
                     .begin = size(),
                     .size = rows.size(),
                     .step_size = step_size,
                     .weight = weight,
                     .rows = std::move(rows)});
  }

  /// The first, second, ... part that `owner` appended; nullptr when it appended none in this
  /// batch.
  Part const* part(void const* owner, std::int64_t which = 0) const {
    for (auto const& p : parts) {
      if (p.owner == owner && which-- == 0) return &p;
    }
    return nullptr;
  }
};

}  // namespace v0
}  // namespace pawl
