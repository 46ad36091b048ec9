// Which rows come when: the shuffled order of an epoch of 60,000 rows, cut into batches of 10. The
// plan draws it from (seed, experience, epoch) alone, the same on every platform; by hand it is
// `randperm` and slices. Both choose at random, so nothing is compared but time. Per epoch. Bytes:
// the order, written and read. Floor: a copy of it.
//
//   pawl-micro --benchmark_filter=plan

#include "pawl/engine/plan.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

constexpr std::int64_t rows = 60'000, batch = 10;

void plan(benchmark::State& state) {
  pawl::NoiseScope noise(pawl::Generator(1));
  std::int64_t experience = 0;
  constexpr double bytes = 2. * rows * sizeof(std::int64_t);
  micro::compare(
      state, {.bytes = bytes},
      [&] {
        pawl::Plan order(rows, {.batch_size = batch}, pawl::Seed{1}, experience++);
        for (std::int64_t step = 0; step < order.steps(); ++step) {
          benchmark::DoNotOptimize(order.positions(step));
        }
      },
      [&] {
        auto const order = torch::randperm(rows);
        for (std::int64_t begin = 0; begin < rows; begin += batch) {
          benchmark::DoNotOptimize(order.slice(0, begin, begin + batch));
        }
      },
      micro::Copy(bytes));
}
BENCHMARK(plan)->Apply(micro::turns<41>);

}  // namespace
