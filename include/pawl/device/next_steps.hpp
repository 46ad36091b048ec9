#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "fleet.hpp"
#include "step_kinds.hpp"

namespace pawl {
inline namespace v0 {

/// What learners of a fleet do next: each says what it could, and is told what all will.
struct NextSteps {
  std::vector<std::int64_t> series{};        ///< the kind of which it could record a series
  std::vector<DeviceGraph const*> graphs{};  ///< what it could replay with the others
  bool record = false;                       ///< all record such a series
  std::size_t replay = 0;                    ///< so many of these graphs all replay

  /// What is possible with these steps planned, and a series of `ripe` (or nullptr) to be recorded.
  static NextSteps possible(StepKind const* ripe, PlannedSteps const& planned) {
    NextSteps next;
    if (ripe != nullptr) next.series = ripe->signature;
    for (std::size_t i = 0;
         planned.alike_from(i) >= steps_in_series && planned[i].together.graph;) {
      next.graphs.push_back(planned[i].together.graph->identity());
      i += static_cast<std::size_t>(steps_in_series);
    }
    return next;
  }

  /// To be called once by every learner of a fleet before its next steps.
  void agree(Fleet::Member& fleet) {
    fleet.agree(*this, [](auto const& all) {
      auto const& first = *all.front();
      bool record = !first.series.empty();
      auto replay = first.graphs.size();
      for (auto const* each : all) {
        record = record && each->series == first.series;
        std::size_t same = 0;
        while (same < std::min(replay, each->graphs.size()) &&
               each->graphs[same] == first.graphs[same]) {
          ++same;
        }
        replay = same;
      }
      for (auto* each : all) each->record = record, each->replay = replay;
    });
  }
};

}  // namespace v0
}  // namespace pawl
