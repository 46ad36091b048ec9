#pragma once

// Options by their names, as a configuration sets them.

#include <string>
#include <utility>
#include <vector>

#include <pawl/core/options.hpp>

using Settings = std::vector<std::pair<std::string, std::string>>;

/// The strategy with these options set.
template <class S>
S with(S strategy, Settings const& options) {
  for (auto const& [name, value] : options) pawl::set_option(strategy, name, value);
  return strategy;
}
