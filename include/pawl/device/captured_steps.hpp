#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "../core/context.hpp"
#include "../engine/plan.hpp"
#include "../engine/step.hpp"
#include "fleet.hpp"
#include "loss_watch.hpp"
#include "next_steps.hpp"
#include "obstacle.hpp"
#include "recorded_steps.hpp"
#include "shared_graph.hpp"
#include "step_kinds.hpp"
#include "step_planner.hpp"

namespace pawl {
inline namespace v0 {

/// Runs the steps of an experience on a device as graphs. The host decides step after step which
/// rows are used, and what goes into memories; a step that is like one recorded before is not run,
/// but planned: its numbers go into a table, and the device replays the graph. Alike are steps
/// whose shapes and row weights are the same (see `depends_on`). One of a new kind runs as written,
/// twice; the third is recorded. When eight of a kind have followed each other, eight more are
/// recorded as one graph (a series), in which the device goes from step to step by itself. Learners
/// of a fleet record their series together, and replay them together as long as their steps are of
/// the same kinds.
template <class Strategies, class Opt>
class CapturedSteps {
 public:
  /// Up to `limit` steps may go by before observers look.
  CapturedSteps(Context& context, Strategies& strategies, Opt& optimizer,
                Step<Strategies, Opt>& step, Plan& plan, std::int64_t limit)
      : c(context),
        step_(step),
        plan_(plan),
        limit_(limit),
        losses_(context),
        planner_(context, step, plan) {
    c.fast.capture.clear();
    if (c.arena.device().is_cpu()) return;
    fleet_ = Fleet::here();
    auto const why = capture_obstacle(context, strategies, optimizer);
    on_ = why.empty();
    if (on_) stream_.emplace(c.arena.device());
    if (fleet_ != nullptr) {
      fleet_->enter(on_ && limit_ >= steps_in_series ? composition(c, strategies) : "");
    }
    if (!on_) give_up(why);
  }
  ~CapturedSteps() {
    if (fleet_ != nullptr) fleet_->leave();
  }
  CapturedSteps(CapturedSteps const&) = delete;
  CapturedSteps& operator=(CapturedSteps const&) = delete;

  /// Replays steps from the present one on, as long as their kinds are recorded, and
  /// calls `shown()` after each. Returns whether there were any; if not, the next step must be run.
  /// What is thrown meanwhile is thrown on when all steps that were planned are done, so that host
  /// and device agree.
  template <class F>
  bool replay(F&& shown) {
    if (!on_) return false;
    if (is_time_for_a_series()) {
      fleet_records_ = agree(ripe_->together.graph ? nullptr : ripe_, {}).record;
      return false;
    }
    std::exception_ptr stopped;
    auto const first = c.step;
    auto const planned = planner_.plan(std::min(limit_, ahead_), stopped);
    auto with_fleet = agree(nullptr, planned).replay;
    if (planned.empty()) {
      if (stopped) std::rethrow_exception(stopped);
      return false;
    }
    planner_.send();
    ahead_ = std::min(planner_.most_ahead, 2 * ahead_);
    Ahead const ahead_of_device(c, first);
    RecordedSteps const* before = nullptr;
    for (std::size_t i = 0; i < planned.size();) {
      auto& kind = planned[i];
      auto const is_series = planned.alike_from(i) >= steps_in_series;
      auto const& recorded = with_fleet > 0                  ? kind.together
                             : is_series && kind.alone.graph ? kind.alone
                                                             : kind.one;
      if (!recorded.graph->replay()) {  // another learner has left the fleet
        with_fleet = 0;
        continue;
      }
      if (with_fleet > 0) --with_fleet;
      if (&recorded != before) recorded.results.put_back(c);
      before = &recorded;
      for (auto const& losses : recorded.losses) {
        losses.put_back(c);
        if (++i == planned.size()) recorded.results.put_rows_back(c, planned.last_batch());
        next_step(shown, stopped);
      }
      if (is_series && &recorded == &kind.one && !kind.series_failed) ripe_ = &kind;
    }
    if (stopped) std::rethrow_exception(stopped);
    watch_losses_since(first);
    return true;
  }

  /// Runs the next steps through `one()`, calls `shown()` after each, and records them as one
  /// graph, when many of a kind have followed each other. Returns whether it did.
  template <class One, class F>
  bool run_series(One&& one, F&& shown) {
    if (!on_ || !is_time_for_a_series()) return false;
    auto& kind = *std::exchange(ripe_, nullptr);
    auto* const fleet = fleet_records_ ? fleet_ : nullptr;
    std::exception_ptr stopped;
    RecordedSteps steps{std::make_unique<SharedGraph>(c.arena.device(), fleet)};
    auto& graph = *steps.graph;
    if (!graph.all_say(planner_.comes_next(kind, stopped))) {
      if (stopped) std::rethrow_exception(stopped);
      return false;
    }
    make_room_for_a_graph();
    auto const first = c.step;
    c.fast.forget_buffers();
    try {
      graph.begin();
      do {
        planner_.record(one);
        steps.losses.push_back(StepLosses::of(c));
        steps.results = StepResults::of(c);
      } while (steps.losses.size() < steps_in_series &&
               graph.all_say(planner_.comes_next(kind, stopped)));
      graph.end();
    } catch (...) {
      graph.abandon();
      if (!steps.losses.empty() || step_.updated()) throw;  // what is noted cannot be taken back
      kind.series_failed = true;
      return false;
    }
    planner_.send();
    require(graph.replay(), "another learner of the fleet has stopped");
    c.fresh = steps.results.fresh;  // not that of the step which was looked at last
    {
      Ahead const ahead_of_device(c, first);
      for (auto const& losses : steps.losses) {
        losses.put_back(c);
        next_step(shown, stopped);
      }
    }
    if (steps.losses.size() == steps_in_series) {
      planner_.kinds().keep(fleet != nullptr ? kind.together : kind.alone, std::move(steps));
    } else {
      planner_.kinds().keep_for_now(std::move(steps));
    }
    if (fleet != nullptr) c.fast.capture = "captured together";
    if (stopped) std::rethrow_exception(stopped);
    watch_losses_since(first);
    return true;
  }

  /// Runs the present step through `one()`, and records it when its kind was seen before.
  template <class F>
  void run(F&& one) {
    if (!on_) return one();
    auto* const kind = planner_.present();
    if (kind == nullptr || kind->seen < 2 || !planner_.kinds().has_room(c.total_steps)) {
      planner_.watch(one);
    } else {
      record(*kind, one);
    }
  }

  /// Graphs are void: parameters have moved, or the module turned out to draw random numbers.
  void forget() {
    planner_.forget();
    ripe_ = nullptr;
  }
  void give_up(std::string const& why) {
    if (c.arena.device().is_cpu()) return;
    forget();
    on_ = false;
    if (auto* const fleet = std::exchange(fleet_, nullptr)) fleet->leave();
    c.fast.capture = "not captured (" + why + ")";
  }

  /// After the last step.
  void finish() { losses_.look(); }

 private:
  /// Goes back to the first of the steps that the host has planned, and notes in the context how
  /// far it has run ahead, for as long as this lives.
  struct Ahead {
    Ahead(Context& context, std::int64_t first) : c(context) {
      c.planned_until = std::exchange(c.step, first);
      c.total_steps -= c.planned_until - first;
    }
    ~Ahead() { c.planned_until = 0; }
    Context& c;
  };

  /// What the learner and the others of its fleet do next; nothing, where it has none.
  NextSteps agree(StepKind const* ripe, PlannedSteps const& planned) {
    if (fleet_ == nullptr) return {};
    auto next = NextSteps::possible(ripe, planned);
    next.agree(*fleet_);
    return next;
  }

  /// What learners have to have in common to meet.
  static std::string composition(Context const& c, Strategies const& strategies) {
    auto text = text_of({c.arena.device(), ", strategies:"});
    for (auto const& record : strategies.records()) text += " " + record.name;
    return text;
  }

  /// Whether the next steps are to be recorded as one graph. (Not the last one, after which more is
  /// looked at.)
  bool is_time_for_a_series() const {
    return ripe_ != nullptr && planner_.kinds().has_room(c.total_steps) &&
           limit_ >= steps_in_series && c.step + steps_in_series < c.steps;
  }

  /// The present step is done, or will be without the host.
  template <class F>
  void next_step(F&& shown, std::exception_ptr& stopped) {
    plan_.locate(c);
    step_.note_rate();
    ++c.step, ++c.total_steps;
    if (stopped) return;
    try {
      shown();
    } catch (...) {
      stopped = std::current_exception();
    }
  }

  /// As often as where steps run as written.
  void watch_losses_since(std::int64_t first) {
    if ((first + 99) / 100 * 100 >= c.step) return;
    losses_.note(c.step - 1);
    if (limit_ == 1) losses_.look();  // observers wait for every step anyway
  }

  /// Where there are many graphs, those of the oldest kind are dropped.
  void make_room_for_a_graph() {
    if (!planner_.kinds().full()) return;
    c.task_loss.item<double>();  // the device may still be at them
    planner_.kinds().drop_oldest();
  }

  template <class F>
  void record(StepKind& kind, F&& one) {
    if (!planner_.reserve(kind)) {
      planner_.kinds().drop_graphs();
      ripe_ = nullptr;
    }
    make_room_for_a_graph();
    auto graph = std::make_unique<SharedGraph>(c.arena.device(), nullptr);
    c.fast.forget_buffers();
    try {
      graph->begin();
      planner_.record(one);
      graph->end();
    } catch (std::exception const& error) {
      graph->abandon();
      if (step_.updated()) throw;  // what strategies have noted cannot be taken back
      auto const what = std::string(error.what());
      give_up(what.substr(0, what.find('\n')));
      return one();
    }
    planner_.send();
    graph->replay();
    planner_.kinds().keep(kind.one, {std::move(graph), {StepLosses::of(c)}, StepResults::of(c)});
    c.fast.capture = "captured";
  }

  Context& c;
  Step<Strategies, Opt>& step_;
  Plan& plan_;
  std::int64_t limit_;
  std::optional<OwnStream> stream_;
  LossWatch losses_;
  StepPlanner<Strategies, Opt> planner_;
  StepKind* ripe_ = nullptr;                  // a series of which is to be recorded
  std::int64_t ahead_ = 2 * steps_in_series;  // in the next table: few, until a series is recorded
  bool on_ = false;
  Fleet::Member* fleet_ = nullptr;
  bool fleet_records_ = false;  // the next series together
};

}  // namespace v0
}  // namespace pawl
