#pragma once

// The catalogue of strategies without the strategies: compiled.cpp alone includes them.

#include <string>
#include <string_view>
#include <vector>

#include <pawl/strategies/entry.hpp>

namespace compiled {

/// As in pawl/strategies/catalogue.hpp.
c10::ArrayRef<pawl::StrategyEntry> strategy_catalogue();

inline std::vector<std::string> strategy_names() {
  return pawl::strategy_names(strategy_catalogue());
}
inline pawl::AnyStrategy make_strategy(std::string_view name) {
  return pawl::make_strategy(name, strategy_catalogue());
}

}  // namespace compiled
