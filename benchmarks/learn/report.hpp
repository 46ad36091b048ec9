#pragma once

// Results for people: tables on standard output.

#include <string>
#include <vector>

#include "energy.hpp"
#include "experiment.hpp"

namespace bench {

/// Columns padded to their widest cell: the first `left` ones to the left, the others to the right.
std::string aligned(std::vector<std::vector<std::string>> const& rows, std::size_t left = 1);

/// "0.9123 +- 0.0045" with the half width of the 95 % interval; "-" where undefined.
std::string mean_and_interval(std::vector<SeedResult> const& results, std::string const& metric,
                              double scale = 1);

std::string result_table(Config const& config, std::vector<SeedResult> const& results,
                         Joules const& joules);
std::string result_csv(std::vector<SeedResult> const& results);

}  // namespace bench
