// From positions to network inputs: rows of 784 bytes and their labels are gathered from 10,000 in
// a shuffled order and scaled to float, by `Dataset::read` and `Normalise` and by hand with
// `index_select`, `to` and `mul`. Both must give the same inputs. Per batch. Bytes: the rows are
// read, the inputs written. Floor: a copy of as many bytes.
//
//   pawl-micro --benchmark_filter=gather

#include <vector>

#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr std::int64_t rows = 10'000;

void gather(benchmark::State& state) {
  auto const batch = state.range(0);
  auto const data = micro::random_images(rows).train;
  auto const all = data.read(torch::arange(rows));
  std::vector<Tensor> positions;
  {
    pawl::NoiseScope noise(pawl::Generator(3));
    auto const order = torch::randperm(rows);
    for (std::int64_t i = 0; i + batch <= rows; i += batch) {
      positions.push_back(order.slice(0, i, i + batch));
    }
  }
  Tensor ours, theirs;
  auto const bytes = static_cast<double>(batch) * 784 * (1 + sizeof(float));
  micro::Copy copy(bytes);
  micro::compare(
      state, {.bytes = bytes, .operations = static_cast<double>(positions.size())},
      [&] {
        for (auto const& some : positions) {
          auto const read = data.read(some);
          ours = data.normalise(read.stored, torch::kFloat32);
          benchmark::DoNotOptimize(read.y);
        }
      },
      [&] {
        for (auto const& some : positions) {
          theirs = all.stored.index_select(0, some).to(torch::kFloat32).mul_(1 / 255.);
          benchmark::DoNotOptimize(all.labels.index_select(0, some));
        }
      },
      [&] {
        for (std::size_t i = 0; i < positions.size(); ++i) copy();
      });
  micro::expect_same(state, {ours}, {theirs});
}
BENCHMARK(gather)->ArgName("batch")->Arg(10)->Arg(128)->Apply(micro::turns<41>);

}  // namespace
