#pragma once

// Strategies by their names: a test that needs some strategy is not compiled again when it changes.

#include <string>
#include <utility>
#include <vector>

#include "with.hpp"

#include <pawl/core/any_learner.hpp>
#include <strategies/compiled.hpp>

inline pawl::AnyStrategy named(std::string const& name, Settings const& options = {}) {
  return with(compiled::make_strategy(name), options);
}

inline pawl::AnyLearner learner_of(pawl::Model model, pawl::AnyOptimizer optimizer,
                                   std::vector<pawl::AnyStrategy> strategies) {
  return {std::move(model), std::move(optimizer), pawl::StrategyList(std::move(strategies))};
}
