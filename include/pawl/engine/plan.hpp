#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "../core/random.hpp"
#include "../core/training.hpp"

namespace pawl {
inline namespace v0 {

/// Which rows of an experience are used at which step: made on the host, in coordinates of the
/// step's whole batch, from (seed, experience, epoch) alone.
class Plan {
 public:
  Plan(std::int64_t rows, Training const& training, Seed seed, std::int64_t experience)
      : rows_(rows), training_(training), seed_(seed), experience_(experience) {
    require(rows > 0, {"experience ", experience, " has no training rows"});
    require(training.batch_size <= rows,
            {"batch_size is ", training.batch_size, " but experience ", experience, " has only ",
             rows, " training rows; choose a smaller batch_size"});
    auto const b = training.batch_size;
    per_epoch_ = training.drop_last ? rows / b : (rows + b - 1) / b;
  }

  std::int64_t steps() const {
    return (training_.iterations > 0 ? training_.iterations : training_.epochs * per_epoch_) *
           training_.passes;
  }
  std::int64_t epoch_of(std::int64_t step) const { return step / training_.passes / per_epoch_; }
  std::int64_t pass_of(std::int64_t step) const { return step % training_.passes; }

  /// Notes in a context where a step is.
  template <class Context>
  void locate(Context& c) const {
    c.epoch = epoch_of(c.step);
    c.pass = pass_of(c.step);
  }

  /// Rows of the smallest batch.
  std::int64_t smallest_batch() const {
    auto const rest = rows_ % training_.batch_size;
    auto const reached = steps() / training_.passes >= per_epoch_;
    return training_.drop_last || rest == 0 || !reached ? training_.batch_size : rest;
  }

  /// What step n means: a run can only be continued under the same plan.
  std::string text() const {
    return text_of({"rows ", rows_, ", batch_size ", training_.batch_size, ", passes ",
                    training_.passes, ", shards ", training_.shards, ", shuffle ",
                    training_.shuffle, ", drop_last ", training_.drop_last});
  }

  /// Positions [B] int64 (host) in the experience of the fresh rows of a step.
  Tensor positions(std::int64_t step) {
    auto const epoch = epoch_of(step);
    if (epoch != order_epoch_) {
      order_epoch_ = epoch;
      order_ = training_.shuffle
                   ? torch::tensor(seed_.generator("order", experience_, epoch).permutation(rows_))
                   : torch::arange(rows_, torch::kInt64);
    }
    auto const begin = step / training_.passes % per_epoch_ * training_.batch_size;
    return order_.slice(0, begin, std::min(begin + training_.batch_size, rows_));
  }

 private:
  std::int64_t rows_;
  Training training_;
  Seed seed_;
  std::int64_t experience_;
  std::int64_t per_epoch_ = 0;
  std::int64_t order_epoch_ = -1;
  Tensor order_;
};

}  // namespace v0
}  // namespace pawl
