// What is asked of the system's memory.

#include <cstdint>
#include <cstdlib>

#include <pawl/engine/pages.hpp>

#include <sys/resource.h>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

constexpr bool has_own_allocator =
#if defined(__SANITIZE_ADDRESS__) || !defined(__GLIBC__)
    true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
    true;
#else
    false;
#endif
#else
    false;
#endif

/// Pages that were given to this process so far.
std::int64_t faults() {
  rusage usage{};
  REQUIRE(::getrusage(RUSAGE_SELF, &usage) == 0);
  return usage.ru_minflt;
}

}  // namespace

TEST_CASE("memory that is freed is there for the next step, without the system") {
  keep_freed_memory();
  auto const is_tuned = std::getenv("GLIBC_TUNABLES") != nullptr;
  constexpr std::int64_t mebibyte = 1 << 18;  // of float32
  auto const step = [] {
    auto const first = torch::ones({48 * mebibyte}), second = first.narrow(0, 0, mebibyte) + 1;
    return second[0].item<double>();
  };
  for (int i = 0; i < 4; ++i) CHECK(step() == 2);
  auto const before = faults();
  for (int i = 0; i < 4; ++i) CHECK(step() == 2);
  constexpr std::int64_t pages = 4 * 48 * 256;  // of 4 KiB, were they asked for in each step
  if (!has_own_allocator && !is_tuned) CHECK(faults() - before < pages / 20);
}

TEST_CASE("zeros on huge pages are zeros of any size and type") {
  for (std::int64_t const n : {0, 1, 1000, 300'000, 1'000'003}) {
    for (auto const type : {torch::kFloat32, torch::kFloat64}) {
      auto const zeros = zeros_on_huge_pages(n, torch::TensorOptions(type));
      CHECK(zeros.numel() == n);
      CHECK((zeros.scalar_type() == type));
      CHECK(zeros.count_nonzero().item<std::int64_t>() == 0);
    }
  }
}
