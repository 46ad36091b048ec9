#pragma once

// The seeds of a configuration, one after another or several at a time.

#include <functional>

#include "experiment.hpp"

namespace bench {

/// Takes results in the order of seeds, on the calling thread.
struct Receiver {
  OnExperience experience;
  std::function<void(SeedResult const&)> result;
};

/// Runs all seeds of a configuration, `run.jobs` at a time. Each gives the bits that it gives
/// alone. Throws `Interrupted`, or what went wrong with a seed; all that was finished before was
/// received.
void run_seeds(Config const& config, pawl::TrainTest const& data, Receiver const& receiver);

}  // namespace bench
