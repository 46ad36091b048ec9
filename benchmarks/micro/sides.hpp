#pragma once

// What the benchmarks of single operations share. Each does the same work three times over: as pawl
// does it, as one would write it by hand with LibTorch, and what cannot be left out of it (the
// floor: matrix products, or a copy of as many bytes). The three run in turns in one process on one
// thread; every counter is a median over the turns:
//
//   pawl_us, by_hand_us, floor_us   microseconds per operation
//   ratio      by hand / pawl: above 1, pawl is faster
//   of_floor   floor / pawl: 1 is as fast as it can be
//   FLOP/s, bytes/s   what pawl reaches; of the work named in the file

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pawl/torch.hpp"

#include <benchmark/benchmark.h>

namespace micro {

using torch::Tensor;

/// What one operation amounts to.
struct Work {
  double flops = 0;       ///< floating-point operations; 0: not told
  double bytes = 0;       ///< to be read and written at least; 0: not told
  double operations = 1;  ///< in one call of a side
};

template <class F>
double microseconds(std::int64_t calls, F&& run) {
  auto const start = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < calls; ++i) run();
  std::chrono::duration<double, std::micro> const passed = std::chrono::steady_clock::now() - start;
  return passed.count() / static_cast<double>(calls);
}

inline double median(std::vector<double> values) {
  auto const middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// For `Apply`: how many turns a benchmark takes. Its own time is that of pawl's turns.
template <int count>
void turns(benchmark::internal::Benchmark* benchmark) {
  benchmark->Iterations(count)->UseManualTime();
}

/// Runs the sides in turns, each as often as the others, and sets the counters.
template <class Pawl, class Hand, class Floor>
void compare(benchmark::State& state, Work const& work, Pawl&& pawl, Hand&& by_hand,
             Floor&& floor) {
  constexpr double turn = 20'000;  // microseconds
  at::set_num_threads(1);
  pawl(), by_hand(), floor();  // warm up
  auto const one = microseconds(1, pawl);
  by_hand();
  auto const calls = std::clamp<std::int64_t>(static_cast<std::int64_t>(turn / one), 1, 1000);
  std::vector<double> ours, theirs, least, ratio, of_floor;
  for (auto _ : state) {
    auto const first = ours.size() % 2 == 0;  // who comes second finds other caches
    auto const before = first ? microseconds(calls, pawl) : 0;
    theirs.push_back(microseconds(calls, by_hand));
    ours.push_back(first ? before : microseconds(calls, pawl));
    least.push_back(microseconds(calls, floor));
    ratio.push_back(theirs.back() / ours.back());
    of_floor.push_back(least.back() / ours.back());
    state.SetIterationTime(ours.back() * 1e-6);
  }
  auto& counters = state.counters;
  counters["pawl_us"] = median(ours) / work.operations;
  counters["by_hand_us"] = median(theirs) / work.operations;
  counters["floor_us"] = median(least) / work.operations;
  counters["ratio"] = median(ratio);
  counters["of_floor"] = median(of_floor);
  auto const rate = 1e6 * work.operations / median(ours);
  if (work.flops > 0) counters["FLOP/s"] = work.flops * rate;
  if (work.bytes > 0) counters["bytes/s"] = work.bytes * rate;
}

/// An error unless both sides ended with the same numbers, to a share of the largest one.
inline void expect_same(benchmark::State& state, std::vector<Tensor> const& ours,
                        std::vector<Tensor> const& theirs, double tolerance = 0) {
  auto same = ours.size() == theirs.size();
  for (std::size_t i = 0; same && i < ours.size(); ++i) {
    auto const allowed = tolerance * theirs[i].abs().max().item<double>();
    same = ours[i].sizes() == theirs[i].sizes() &&
           (ours[i] - theirs[i]).abs().max().item<double>() <= allowed;
  }
  if (!same) state.SkipWithError("pawl and the way by hand ended with different numbers");
}

/// A floor: moves this many bytes, half of them reads and half of them writes, within memory of
/// `distinct` bytes, in pieces.
class Copy {
 public:
  Copy(double moved, double distinct)
      : moved_(static_cast<std::size_t>(moved / 2)),
        from_(static_cast<std::size_t>(distinct / 2), 1),
        to_(from_.size()) {}
  explicit Copy(double moved) : Copy(moved, moved) {}

  void operator()() {
    constexpr std::size_t piece = 1 << 16;
    for (std::size_t done = 0, at = 0; done < moved_;) {
      auto const size = std::min({piece, from_.size() - at, moved_ - done});
      std::memcpy(to_.data() + at, from_.data() + at, size);
      done += size, at = (at + size) % from_.size();
    }
    benchmark::DoNotOptimize(to_.data());
    benchmark::ClobberMemory();
  }

 private:
  std::size_t moved_;
  std::vector<char> from_, to_;
};

}  // namespace micro
