// A reservoir of 500 rows of 784 bytes, as online replay uses it: inserting a stream of 12,000 rows
// 10 at a time, and drawing 10 rows from a full one, against the same written by hand for inputs
// and labels alone (pawl also keeps the rows' numbers). Both choose at random, so nothing is
// compared but time. Bytes: the rows of a call, read and written once. Floor: a copy of them.
//
//   pawl-micro --benchmark_filter=reservoir

#include <random>
#include <utility>
#include <vector>

#include "pawl/memory/reservoir.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr std::int64_t rows = 12'000, batch = 10, capacity = 500, batches = rows / batch;
constexpr double bytes = 2. * batch * (784 + 8);

/// Algorithm R, one index copy per column.
struct ByHand {
  void insert(pawl::Rows const& fresh) {
    std::vector<std::int64_t> from, to;
    for (std::int64_t i = 0; i < fresh.size(); ++i, ++seen) {
      auto const slot =
          seen < capacity ? seen : std::uniform_int_distribution<std::int64_t>(0, seen)(random);
      if (slot < capacity) from.push_back(i), to.push_back(slot);
    }
    if (from.empty()) return;
    auto const source = torch::tensor(from), target = torch::tensor(to);
    x.index_copy_(0, target, fresh.stored.index_select(0, source));
    y.index_copy_(0, target, fresh.y.index_select(0, source));
  }
  std::pair<Tensor, Tensor> draw() const {
    auto const chosen = torch::randperm(capacity).slice(0, 0, batch);
    return {x.index_select(0, chosen), y.index_select(0, chosen)};
  }

  Tensor x = torch::zeros({capacity, 784}, torch::kUInt8),
         y = torch::zeros({capacity}, torch::kLong);
  std::int64_t seen = 0;
  std::mt19937_64 random{1};
};

std::vector<pawl::Rows> stream() {
  auto const data = micro::random_images(rows).train;
  std::vector<pawl::Rows> all;
  for (std::int64_t i = 0; i < rows; i += batch)
    all.push_back(data.read(torch::arange(i, i + batch)));
  return all;
}

void reservoir_insert(benchmark::State& state) {
  auto const all = stream();
  micro::Copy copy(bytes);
  micro::compare(
      state, {.bytes = bytes, .operations = batches},
      [&] {
        pawl::Reservoir memory{.capacity = capacity};
        for (auto const& fresh : all) memory.insert(fresh, pawl::Generator(1));
      },
      [&] {
        ByHand memory;
        for (auto const& fresh : all) memory.insert(fresh);
      },
      [&] {
        for (std::int64_t i = 0; i < batches; ++i) copy();
      });
}
BENCHMARK(reservoir_insert)->Apply(micro::turns<41>);

void reservoir_draw(benchmark::State& state) {
  pawl::NoiseScope noise(pawl::Generator(1));
  pawl::Reservoir memory{.capacity = capacity};
  ByHand by_hand;
  for (auto const& fresh : stream())
    memory.insert(fresh, pawl::Generator(1)), by_hand.insert(fresh);
  std::int64_t step = 0;
  micro::compare(
      state, {.bytes = bytes},
      [&] { benchmark::DoNotOptimize(memory.draw(batch, pawl::Generator(2).fork(step++))); },
      [&] { benchmark::DoNotOptimize(by_hand.draw()); }, micro::Copy(bytes));
}
BENCHMARK(reservoir_draw)->Apply(micro::turns<41>);

}  // namespace
