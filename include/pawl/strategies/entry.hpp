#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "../core/any_learner.hpp"

namespace pawl {
inline namespace v0 {

/// A strategy that can be chosen by name.
struct StrategyEntry {
  char const* name;
  char const* about;
  AnyStrategy (*make)();
};

template <class S>
constexpr StrategyEntry strategy_entry() {
  return {S::name, S::about, [] { return AnyStrategy(S{}); }};
}

inline std::vector<std::string> strategy_names(c10::ArrayRef<StrategyEntry> entries) {
  std::vector<std::string> names;
  for (auto const& entry : entries) names.push_back(entry.name);
  return names;
}

/// The strategy of that name with its defaults; throws `Error` with the nearest name when there is
/// none.
inline AnyStrategy make_strategy(std::string_view name, c10::ArrayRef<StrategyEntry> entries) {
  for (auto const& entry : entries) {
    if (entry.name == name) return entry.make();
  }
  fail({"there is no strategy '", name, "'", suggestion(name, strategy_names(entries))});
}

}  // namespace v0
}  // namespace pawl
