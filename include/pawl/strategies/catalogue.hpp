#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "a_gem.hpp"
#include "der.hpp"
#include "entry.hpp"
#include "er_ace.hpp"
#include "ewc.hpp"
#include "lwf.hpp"
#include "mas.hpp"
#include "ncm.hpp"
#include "replay.hpp"
#include "si.hpp"

namespace pawl {
inline namespace v0 {

/// Every strategy of pawl, with its defaults. A strategy of yours works without an entry; one is
/// only needed to choose it by name.
inline c10::ArrayRef<StrategyEntry> strategy_catalogue() {
  static constexpr StrategyEntry all[] = {strategy_entry<Ewc>(),         strategy_entry<Si>(),
                                          strategy_entry<Mas>(),         strategy_entry<Lwf>(),
                                          strategy_entry<Replay>(),      strategy_entry<Der>(),
                                          strategy_entry<DerPlusPlus>(), strategy_entry<ErAce>(),
                                          strategy_entry<AGem>(),        strategy_entry<Ncm>()};
  return all;
}

inline std::vector<std::string> strategy_names() { return strategy_names(strategy_catalogue()); }

/// The strategy of that name with its defaults; throws `Error` with the nearest name when there is
/// none.
inline AnyStrategy make_strategy(std::string_view name) {
  return make_strategy(name, strategy_catalogue());
}

}  // namespace v0
}  // namespace pawl
