#include "compiled.hpp"

#include <pawl/strategies/catalogue.hpp>

namespace compiled {

c10::ArrayRef<pawl::StrategyEntry> strategy_catalogue() { return pawl::strategy_catalogue(); }

}  // namespace compiled
