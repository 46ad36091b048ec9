#pragma once

// Works drawn at random: networks, strategies, optimizers and batches that nobody chose.

#include <cstdint>
#include <memory>
#include <string>

#include "works.hpp"

namespace peers {

/// What a seed draws: up to four convolutions and three linear layers, random images, naive
/// training or one of six strategies, one of three optimizers, batches of 10 to 128.
struct Drawn {
  std::string text;  ///< "er, momentum, batch 32, 3x32x32: conv 48 k3 s1, max pool, 10"
  std::unique_ptr<Task> task;
  Work work;
};

/// `steps` are those of each of five experiences.
Drawn drawn_work(std::uint64_t seed, std::int64_t steps);

}  // namespace peers
