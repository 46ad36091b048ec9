// The products of a layer 784 -> 400 as a step makes them, of few rows or of rows with zeros:
// outputs, gradient of the inputs, and plain SGD on the weights. `filled` is the share, in percent,
// of inputs and of gradients of outputs that are not zero. By hand: LibTorch's products and, for
// the weights, the addition of their gradient. Both must agree but for rounding. Floor: a square
// product of as many operations, those with zeros included.
//
//   pawl-micro --benchmark_filter=product

#include <cmath>
#include <cstdint>

#include "pawl/products/linear.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

constexpr std::int64_t inputs = 784, outputs = 400;

struct Layer {
  Layer(std::int64_t rows, double filled) {
    pawl::NoiseScope noise(pawl::Generator(4));
    torch::NoGradGuard no_grad;
    auto const numbers = [&](std::int64_t columns) {
      return torch::randn({rows, columns}) * (torch::rand({rows, columns}) < filled);
    };
    x = numbers(inputs), w = torch::randn({outputs, inputs});
    d = numbers(outputs), bias = torch::randn({outputs});
    y = torch::empty({rows, outputs}), dx = torch::empty({rows, inputs}), dw = torch::empty_like(w);
    flops = 2. * static_cast<double>(x.numel() * outputs);
    auto const side = std::llround(std::cbrt(flops / 2));
    square = torch::randn({side, side}), product = torch::empty_like(square);
  }
  Tensor x, w, bias, d, y, dx, dw, square, product;
  double flops;
};

template <class Pawl, class Hand>
void compare(benchmark::State& state, Tensor Layer::*result, Pawl&& pawl, Hand&& by_hand) {
  torch::NoGradGuard no_grad;
  auto const filled = static_cast<double>(state.range(1)) / 100;
  Layer ours(state.range(0), filled), theirs(state.range(0), filled);
  micro::compare(
      state, {.flops = ours.flops}, [&] { pawl(ours); }, [&] { by_hand(theirs); },
      [&] { at::mm_out(ours.product, ours.square, ours.square); });
  micro::expect_same(state, {ours.*result}, {theirs.*result}, 1e-4);
}

void product_outputs(benchmark::State& state) {
  compare(
      state, &Layer::y, [](Layer& l) { pawl::products::linear(l.y, l.x, l.w, l.bias); },
      [](Layer& l) { at::addmm_out(l.y, l.bias, l.x, l.w.t()); });
}

void product_inputs(benchmark::State& state) {
  compare(
      state, &Layer::dx, [](Layer& l) { pawl::products::input_gradient(l.dx, l.d, l.w); },
      [](Layer& l) { at::mm_out(l.dx, l.d, l.w); });
}

void product_weights(benchmark::State& state) {
  constexpr double rate = -1e-6;
  compare(
      state, &Layer::w,
      [](Layer& l) {
        pawl::LayerGradient{l.d, l.x}.add_to(l.w, rate);
      },
      [](Layer& l) {
        at::mm_out(l.dw, l.d.t(), l.x);
        l.w.add_(l.dw, rate);
      });
}

void rows(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"rows", "filled"})->ArgsProduct({{10, 20, 64, 128}, {100}});
  benchmark->ArgsProduct({{64, 128, 600}, {20, 50}})->Apply(micro::turns<41>);
}
BENCHMARK(product_outputs)->Apply(rows);
BENCHMARK(product_inputs)->Apply(rows);
BENCHMARK(product_weights)->Apply(rows);

}  // namespace
