#pragma once

#include <algorithm>
#include <cstdint>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {
namespace products {

/// Calls f(begin, end) for parts of [0, n), each of a multiple of `unit` but the last one, in as
/// many of LibTorch's threads as there are, but no more than `most`.
///
/// LibTorch starts its threads in code of its own only: `at::parallel_for` in a header would need
/// OpenMP in every user's build. What its iterators do is in LibTorch, so one goes over bytes, one
/// for each unit.
template <class F>
void in_parallel(std::int64_t n, std::int64_t unit, std::int64_t most, F const& f) {
  auto const units = (n + unit - 1) / unit;
  auto const threads = std::min({std::int64_t{at::get_num_threads()}, most, units});
  if (threads <= 1 || at::in_parallel_region()) return f(std::int64_t{0}, n);
  auto bytes = at::empty({units}, torch::kByte);
  auto const* const first = bytes.const_data_ptr<std::uint8_t>();
  auto iterator = at::TensorIterator::nullary_op(bytes);
  iterator.for_each(
      [&](char** data, std::int64_t const*, std::int64_t count, std::int64_t) {
        auto const begin = reinterpret_cast<std::uint8_t const*>(data[0]) - first;
        f(begin * unit, std::min(n, (begin + count) * unit));
      },
      (units + threads - 1) / threads);
}

}  // namespace products
}  // namespace v0
}  // namespace pawl
