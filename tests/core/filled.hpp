#pragma once

// Modules for tests, whose weights belong to a seed and to nothing else.

#include <cstdint>

#include <pawl/core/random.hpp>

/// Normal weights of deviation 0.5, in double.
template <class M>
M filled(M module, pawl::Seed seed = {3}) {
  module->to(torch::kFloat64);
  std::int64_t i = 0;
  for (auto& p : module->parameters()) pawl::fill_normal(p, 0, 0.5, seed.generator("net", i++));
  return module;
}
