// Measuring a learner on the test sets of a stream (5 x 2,000 rows of 784 bytes, MLP
// 784-400-400-10) against nothing but the forward passes over the same rows, as float inputs that
// lie ready, as many at a time: `ratio` is the share of forward-only throughput that is kept. The
// accuracies must be those of the logits by hand. Floor: the matrix products.
//
//   pawl-micro --benchmark_filter=evaluate

#include <vector>

#include "pawl/core/learner.hpp"
#include "pawl/metrics/evaluate.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr std::int64_t sets = 5, rows = 2'000, batch = 1'000;

void evaluate(benchmark::State& state) {
  auto const all = micro::random_images(sets * rows);
  pawl::Stream stream{.name = "random", .outputs = 10, .experiences = {}};
  for (std::int64_t e = 0; e < sets; ++e) {
    auto experience = all;
    experience.index = e;
    experience.test = all.test.select(torch::arange(e * rows, (e + 1) * rows));
    stream.experiences.push_back(experience);
  }
  pawl::Learner learner{micro::perceptron(), pawl::Sgd{.lr = 0.01}};
  learner.fit(all, {.iterations = 1});

  auto const read = all.test.read(torch::arange(sets * rows));
  auto const inputs = all.test.normalise(read.stored, torch::kFloat32);
  micro::Products products(batch);
  pawl::AccuracyRow measured;
  std::vector<Tensor> logits;
  torch::NoGradGuard no_grad;
  micro::compare(
      state, {.flops = products.forward_flops() / batch, .operations = sets * rows},
      [&] { measured = pawl::evaluate(learner, stream); },
      [&] {
        logits.clear();
        for (std::int64_t i = 0; i < sets * rows; i += batch) {
          logits.push_back(learner.model()->forward(inputs.slice(0, i, i + batch)));
        }
      },
      [&] {
        for (std::int64_t i = 0; i < sets * rows; i += batch) products.forward();
      });
  auto const right = at::cat(logits).argmax(1).eq(read.y).view({sets, rows});
  auto const expected = right.to(torch::kFloat64).mean(1);
  micro::expect_same(state, {torch::tensor(measured.accuracy, torch::kFloat64)}, {expected}, 1e-12);
}
BENCHMARK(evaluate)->Apply(micro::turns<11>);

}  // namespace
