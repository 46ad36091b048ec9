#pragma once

// Published results and the protocols behind them, read from benchmarks/protocols, and the rule by
// which a run agrees with one.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config.hpp"

namespace bench {

/// One published number and everything needed to run for it.
struct Target {
  enum class Band { two_sided, at_least, range };

  std::string id;
  std::string protocol;
  std::string source;
  std::string title;
  std::string method;
  std::string scenario;
  std::string cost;    ///< of one run on one core: seconds, minutes or hours
  std::string metric;  ///< in percent below
  double published = 0;
  std::optional<double> spread = {};
  std::string spread_kind;
  std::int64_t runs = 0;  ///< published ones
  Band band = Band::two_sided;
  double tolerance = 0;        ///< of a two-sided band, points
  double low = 0, high = 100;  ///< of the other bands
  std::int64_t seeds = 3;      ///< of the other bands
  std::optional<double> forgetting = {};
  double forgetting_low = 0, forgetting_high = 0;
  std::vector<Assignment> assignments = {};  ///< the configuration

  /// Sample standard deviation behind the published spread; nothing for a single run.
  std::optional<double> deviation() const;
  double half_width(std::int64_t n) const;  ///< of a two-sided band, for the mean of n runs
  bool contains(double mean, std::int64_t n) const;
  std::string published_text() const;
  std::string band_text(std::int64_t n) const;
};

/// All targets of a folder of protocols (empty: where the program finds its own).
std::vector<Target> read_protocols(std::string const& folder);

}  // namespace bench
