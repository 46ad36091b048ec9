// Batch normalisation in training, forward and backward, of 20 maps as SlimResNet18 has them, with
// channels last: by pawl's kernels against LibTorch's. Both must end with the same gradients.
// Bytes: inputs are read twice on the way there, gradients and inputs twice on the way back;
// outputs and gradients of inputs are written. Floor: a copy of as many bytes in as much memory.
//
//   pawl-micro --benchmark_filter=normalisation

#include <vector>

#include "pawl/engine/normalisation_layers.hpp"
#include "sides.hpp"

namespace {

using torch::Tensor;

struct Maps {
  explicit Maps(std::int64_t channels, std::int64_t side)
      : x(torch::randn({20, channels, side, side}).contiguous(at::MemoryFormat::ChannelsLast)),
        gradient(torch::randn_like(x)),
        weight(torch::ones({channels})),
        bias(torch::zeros({channels})),
        mean(torch::zeros({channels})),
        variance(torch::ones({channels})) {
    for (auto* input : {&x, &weight, &bias}) input->requires_grad_();
  }

  std::vector<Tensor> normalise(bool met) {
    Tensor y;
    {
      pawl::NormalisationLayers::Scope const scope(met);
      y = at::batch_norm(x, weight, bias, mean, variance, true, 0.1, 1e-5, false);
    }
    return torch::autograd::grad({y}, {x, weight, bias}, {gradient});
  }

  Tensor x, gradient, weight, bias, mean, variance;
};

void normalisation(benchmark::State& state) {
  at::set_num_threads(1);
  Maps maps(state.range(0), state.range(1));
  auto const size = static_cast<double>(maps.x.nbytes()), bytes = 8 * size;
  std::vector<Tensor> ours, theirs;
  micro::compare(
      state, {.bytes = bytes}, [&] { ours = maps.normalise(true); },
      [&] { theirs = maps.normalise(false); }, micro::Copy(bytes, 4 * size));
  micro::expect_same(state, ours, theirs, 1e-3);
}

BENCHMARK(normalisation)
    ->ArgNames({"channels", "side"})
    ->Args({20, 32})
    ->Args({40, 16})
    ->Args({80, 8})
    ->Args({160, 4})
    ->Apply(micro::turns<41>);

}  // namespace
