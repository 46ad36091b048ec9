// Keeping the weights and buffers of a learner, and putting them back, against doing so tensor by
// tensor. Bytes: read and written once. Floor: a copy of as many.
//
//   pawl-micro --benchmark_filter='snapshot|roll_back'

#include <vector>

#include "pawl/core/learner.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

std::vector<Tensor> tensors_of(pawl::Model const& model) {
  auto all = model.module->parameters();
  for (auto const& buffer : model.module->buffers()) all.push_back(buffer);
  return all;
}

std::vector<Tensor> cloned(std::vector<Tensor> const& tensors) {
  std::vector<Tensor> copies;
  copies.reserve(tensors.size());
  for (auto const& tensor : tensors) copies.push_back(tensor.detach().clone());
  return copies;
}

double bytes_of(std::vector<Tensor> const& tensors) {
  double bytes = 0;
  for (auto const& tensor : tensors) bytes += 2. * static_cast<double>(tensor.nbytes());
  return bytes;
}

void snapshot(benchmark::State& state, pawl::Model const& ours, pawl::Model const& theirs) {
  pawl::Learner learner{ours, pawl::Sgd{}};
  auto const tensors = tensors_of(theirs);
  auto const bytes = bytes_of(tensors);
  pawl::Snapshot taken;
  std::vector<Tensor> copies;
  micro::compare(
      state, {.bytes = bytes}, [&] { taken = learner.snapshot(); },
      [&] { copies = cloned(tensors); }, micro::Copy(bytes));
  std::vector<Tensor> kept;
  for (auto const& span : taken.layout) {
    kept.push_back(taken.weights.narrow(0, span.offset, span.size).view(span.shape));
  }
  kept.insert(kept.end(), taken.buffers.begin(), taken.buffers.end());
  micro::expect_same(state, kept, copies);
}
BENCHMARK_CAPTURE(snapshot, mlp, micro::perceptron(), micro::perceptron())->Apply(micro::turns<41>);
BENCHMARK_CAPTURE(snapshot, slim_resnet18, micro::slim_resnet18(), micro::slim_resnet18())
    ->Apply(micro::turns<41>);

void roll_back(benchmark::State& state, pawl::Model const& ours, pawl::Model const& theirs) {
  torch::NoGradGuard no_grad;
  pawl::Learner learner{ours, pawl::Sgd{}};
  auto const taken = learner.snapshot();
  auto const tensors = tensors_of(theirs), copies = cloned(tensors);
  for (auto const& tensor : tensors_of(ours)) tensor.add_(1);
  for (auto const& tensor : tensors) tensor.add_(1);
  auto const bytes = bytes_of(tensors);
  micro::compare(
      state, {.bytes = bytes}, [&] { learner.roll_back(taken); },
      [&] {
        for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].copy_(copies[i]);
      },
      micro::Copy(bytes));
  micro::expect_same(state, tensors_of(ours), copies);
}
BENCHMARK_CAPTURE(roll_back, mlp, micro::perceptron(), micro::perceptron())
    ->Apply(micro::turns<41>);
BENCHMARK_CAPTURE(roll_back, slim_resnet18, micro::slim_resnet18(), micro::slim_resnet18())
    ->Apply(micro::turns<41>);

}  // namespace
