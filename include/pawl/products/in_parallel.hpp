#pragma once

#include <algorithm>
#include <cstdint>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {
namespace products {

/// Whether ThreadSanitizer watches: it does not see how OpenMP's threads wait for each other, so
/// there one thread does everything.
#ifdef __has_feature
inline constexpr bool is_watched_by_thread_sanitizer = __has_feature(thread_sanitizer);
#elif defined(__SANITIZE_THREAD__)
inline constexpr bool is_watched_by_thread_sanitizer = true;
#else
inline constexpr bool is_watched_by_thread_sanitizer = false;
#endif

/// Calls f(begin, end) for parts of [0, n), each of a multiple of `unit` but the last one, in as
/// many of LibTorch's threads as there are, but no more than `most`.
///
/// LibTorch starts its threads in code of its own only: `at::parallel_for` in a header would need
/// OpenMP in every user's build, and without it does everything alone. What its iterators do is in
/// LibTorch, so one goes over bytes, one for each unit.
template <class F>
void in_parallel(std::int64_t n, std::int64_t unit, std::int64_t most, F const& f) {
  auto const units = (n + unit - 1) / unit;
  auto const threads = std::min({std::int64_t{at::get_num_threads()}, most, units});
  auto const alone = threads <= 1 || at::in_parallel_region() || is_watched_by_thread_sanitizer;
  if (alone) return f(std::int64_t{0}, n);
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
