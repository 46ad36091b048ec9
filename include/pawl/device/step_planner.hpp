#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <utility>
#include <vector>

#include "../core/context.hpp"
#include "../engine/plan.hpp"
#include "../engine/step.hpp"
#include "step_kinds.hpp"
#include "step_table.hpp"

namespace pawl {
inline namespace v0 {

/// What the host decides about steps before a device comes to them: which rows are used, what goes
/// into memories, and of which kind the steps are. The numbers go into a table on the device.
template <class Strategies, class Opt>
class StepPlanner {
 public:
  static constexpr std::int64_t most_ahead = 256;  ///< steps in a table

  StepPlanner(Context& context, Step<Strategies, Opt>& step, Plan& plan)
      : c(context), step_(step), plan_(plan), table_(context.arena.device()) {}

  /// Those that were met.
  StepKinds& kinds() { return kinds_; }
  StepKinds const& kinds() const { return kinds_; }

  /// The kind of the present step, if planning ended there; else nullptr.
  StepKind* present() const { return present_; }
  void forget() {
    kinds_.clear();
    present_ = nullptr;
  }

  /// Plans steps from the present one on, at most `most`, as long as their kinds are recorded. What
  /// is thrown meanwhile is for later.
  PlannedSteps plan(std::int64_t most, std::exception_ptr& stopped) {
    present_ = nullptr;
    PlannedSteps planned;
    auto const end = std::min(c.steps, c.step + most);
    try {
      while (c.step < end && plan_one(planned)) ++c.step, ++c.total_steps;
    } catch (...) {
      stopped = std::current_exception();
    }
    return planned;
  }

  /// Whether the present step is of a kind. What goes wrong in finding out is for later.
  bool comes_next(StepKind const& kind, std::exception_ptr& stopped) {
    present_ = nullptr;
    try {
      StepTable::Scope const scope(table_, StepTable::Mode::plan);
      std::vector<Batch> batches;
      return look_ahead(batches) == &kind;
    } catch (...) {
      stopped = std::current_exception();
      return false;
    }
  }

  /// Runs the present step through `one()`, and counts the numbers that it is given.
  template <class F>
  void watch(F&& one) {
    StepTable::Scope const scope(table_, StepTable::Mode::watch);
    one();
    if (present_ == nullptr) return;
    ++present_->seen;
    present_->width = table_.width();
  }

  /// Makes room on the device for the numbers of steps of a kind. Returns whether there was: if
  /// not, all graphs are void.
  bool reserve(StepKind const& kind) {
    return table_.reserve(most_ahead, std::max<std::int64_t>(kind.width, 64));
  }

  /// Runs the present step through `one()` while the device notes what it is asked for.
  template <class F>
  void record(F&& one) {
    StepTable::Scope const scope(table_, StepTable::Mode::record);
    table_.start_recording();
    one();
    table_.end_recording();
    table_.keep_row();
  }

  /// Sends the numbers of the steps that were planned or recorded since the last time.
  void send() { table_.send(); }

 private:
  /// The kind of the present step, and its batches; nullptr where it has labels that are new. To be
  /// called while planning.
  StepKind* look_ahead(std::vector<Batch>& batches) {
    plan_.locate(c);
    auto fresh = c.train.read(plan_.positions(c.step), c.arena.device());
    for (auto const label : host_column(fresh.labels)) {
      if (!std::binary_search(c.met.begin(), c.met.end(), label)) return nullptr;
    }
    batches = step_.plan(std::move(fresh));
    return &kinds_.of_row(table_);
  }

  /// Plans the present step, if one of its kind was recorded.
  bool plan_one(PlannedSteps& planned) {
    StepTable::Scope const scope(table_, StepTable::Mode::plan);
    std::vector<Batch> batches;
    present_ = look_ahead(batches);
    if (present_ == nullptr || !present_->one.graph) return false;
    present_->one.results.put_back(c);
    step_.finish_plan();
    present_->used = c.total_steps;
    require(table_.width() == present_->width,
            "a step that was planned differs from the one that was recorded; train with engine = "
            "eager");
    table_.keep_row();
    planned.add(*present_, std::move(batches));
    return true;
  }

  Context& c;
  Step<Strategies, Opt>& step_;
  Plan& plan_;
  StepTable table_;
  StepKinds kinds_;
  StepKind* present_ = nullptr;
};

}  // namespace v0
}  // namespace pawl
