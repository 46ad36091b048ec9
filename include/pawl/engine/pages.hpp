#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "../torch.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pawl {
inline namespace v0 {

/// Zeros [n]. From a MiB upwards they ask a Linux host for huge pages: matrix products walk through
/// weights and their gradients by columns, and take a tenth less time where that costs no look-up
/// per row.
inline Tensor zeros_on_huge_pages(std::int64_t n, at::TensorOptions const& options) {
#ifdef __linux__
  constexpr std::size_t page = std::size_t{2} << 20;
  auto const bytes = static_cast<std::size_t>(n) * options.dtype().itemsize();
  if (options.device().is_cpu() && bytes >= page / 2) {
    auto const whole = (bytes + page - 1) / page * page;
    if (auto* const memory = std::aligned_alloc(page, whole)) {
      ::madvise(memory, whole, MADV_HUGEPAGE);  // a wish: without it all works as well
      return at::from_blob(
                 memory, {n}, [](void* p) { std::free(p); }, options)
          .zero_();
    }
  }
#endif
  return torch::zeros({n}, options);
}

/// Tells the C library, once in a process, to keep memory that is freed, up to 1 GiB. Else glibc
/// gives large blocks back to the system in every step and asks for them again, page by page, which
/// takes a third of a step with images, and more than half of it where a tensor has more than
/// 32 MiB. In exchange a process holds more than it uses at a time. Threads beside the main one
/// keep less. Where the environment tunes glibc, it stays at that. A process that is done with
/// training gives back what it does not use by `malloc_trim(0)`.
inline void keep_freed_memory() {
#ifdef __GLIBC__
  static bool const told = [] {
    for (auto const* decision : {"GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_",
                                 "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}) {
      if (std::getenv(decision) != nullptr) return false;
    }
    constexpr int large = 1 << 30, largest_of_old = 32 << 20;  // some take no higher threshold
    return (::mallopt(M_MMAP_THRESHOLD, large) == 1 ||
            ::mallopt(M_MMAP_THRESHOLD, largest_of_old) == 1) &&
           ::mallopt(M_TRIM_THRESHOLD, large) == 1;
  }();
  static_cast<void>(told);
#endif
}

/// A buffer like the vector `model` [n], kept in `kept` from step to step: asking for memory may
/// take longer than the arithmetic in it. What it holds is of no account.
inline Tensor buffer_like(Tensor const& model, Tensor& kept) {
  auto const fits =
      kept.defined() && kept.numel() >= model.numel() && kept.options().type_equal(model.options());
  if (!fits) kept = torch::empty_like(model);
  return kept.numel() == model.numel() ? kept : kept.narrow(0, 0, model.numel());
}

}  // namespace v0
}  // namespace pawl
