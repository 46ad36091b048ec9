#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "recorded_steps.hpp"
#include "step_table.hpp"

namespace pawl {
inline namespace v0 {

/// So many steps are recorded as one graph, where nobody looks at single steps.
inline constexpr std::int64_t steps_in_series = 8;

/// Steps that ask a device for the same work, and their graphs.
struct StepKind {
  std::vector<std::int64_t> signature{};
  std::vector<void const*> places{};
  std::int64_t width = 0;      ///< numbers in a table's row
  std::int64_t seen = 0;       ///< how often run as written
  std::int64_t used = 0;       ///< when it was planned last, in steps of the learner
  RecordedSteps one{};         ///< one step
  RecordedSteps alone{};       ///< a series
  RecordedSteps together{};    ///< a series of all learners of a fleet
  bool series_failed = false;  ///< the device refused to record one
};

/// The kinds of the steps of an experience, of which a few have graphs: each has memory of its own.
/// Where a new graph needs room, the kind that was planned longest ago loses its own.
class StepKinds {
 public:
  /// The kind of the row that a table holds.
  StepKind& of_row(StepTable const& table) {
    for (auto const& kind : kinds_) {
      auto const same = kind->signature == table.signature() && kind->places == table.places();
      if (same) return *kind;
    }
    // While a memory fills up, every step is of a new kind.
    std::erase_if(kinds_,
                  [this](auto const& kind) { return kinds_.size() > 100 && !kind->one.graph; });
    kinds_.emplace_back(new StepKind{.signature = table.signature(), .places = table.places()});
    return *kinds_.back();
  }

  /// Whether no graph can be added before another is dropped.
  bool full() const { return graphs_ >= most_graphs; }
  /// Whether there is room for a graph, or a kind that seems to be past, in step `now` of the
  /// learner: shapes and numbers that are baked in may not come back.
  bool has_room(std::int64_t now) const {
    if (!full()) return true;
    auto const* past = oldest();
    return past != nullptr && past->used + 100 < now;
  }

  /// Keeps a graph in a place of a kind's.
  void keep(RecordedSteps& place, RecordedSteps steps) {
    place = std::move(steps);
    ++graphs_;
  }
  /// Keeps one that is of no further use, while the device may still be at it.
  void keep_for_now(RecordedSteps steps) {
    short_series_.push_back(std::move(steps));
    ++graphs_;
  }

  /// The oldest kind loses its graphs. The device must be done with them.
  void drop_oldest() {
    short_series_.clear();
    if (auto* past = oldest()) past->one = {}, past->alone = {}, past->together = {};
    graphs_ = 0;
    for (auto const& kind : kinds_) {
      for (auto const* each : {&kind->one, &kind->alone, &kind->together}) {
        graphs_ += each->graph != nullptr;
      }
    }
  }
  /// All kinds do.
  void drop_graphs() {
    for (auto const& kind : kinds_) kind->one = {}, kind->alone = {}, kind->together = {};
    short_series_.clear();
    graphs_ = 0;
  }
  void clear() {
    kinds_.clear(), short_series_.clear();
    graphs_ = 0;
  }

 private:
  static constexpr std::int64_t most_graphs = 16;

  StepKind* oldest() const {
    StepKind* found = nullptr;
    for (auto const& kind : kinds_) {
      if (kind->one.graph && (!found || kind->used < found->used)) found = kind.get();
    }
    return found;
  }

  std::vector<std::unique_ptr<StepKind>> kinds_;
  std::vector<RecordedSteps> short_series_;
  std::int64_t graphs_ = 0;
};

/// The steps that a learner has planned, in their order.
class PlannedSteps {
 public:
  bool empty() const { return kinds_.empty(); }
  std::size_t size() const { return kinds_.size(); }
  StepKind& operator[](std::size_t i) const { return *kinds_[i]; }
  void add(StepKind& kind, std::vector<Batch> batches) {
    kinds_.push_back(&kind);
    batches_of_last_ = std::move(batches);
  }
  /// The last batch of the last step.
  Batch const& last_batch() const { return batches_of_last_.back(); }

  /// How many from number i on are of one kind.
  std::int64_t alike_from(std::size_t i) const {
    auto end = i;
    while (end < kinds_.size() && kinds_[end] == kinds_[i]) ++end;
    return static_cast<std::int64_t>(end - i);
  }

 private:
  std::vector<StepKind*> kinds_;
  std::vector<Batch> batches_of_last_;
};

}  // namespace v0
}  // namespace pawl
