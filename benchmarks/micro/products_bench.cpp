// The products of a layer 784 -> 400, of few rows or of rows with zeros, and of one of few outputs,
// as a step makes them: outputs, gradient of the inputs, and plain SGD on the weights. `filled` is
// the share, in percent, of inputs and of gradients of outputs that are not zero. By hand:
// LibTorch's products and, for the weights, the addition of their gradient. Both must agree but for
// rounding. Floor: a square product of as many operations, those with zeros included.
//
//   pawl-micro --benchmark_filter=product

#include <cmath>
#include <cstdint>

#include "pawl/products/linear.hpp"
#include "sides.hpp"
#include "subjects.hpp"

namespace {

using torch::Tensor;

struct Layer {
  explicit Layer(benchmark::State const& state)
      : Layer(state.range(0), static_cast<double>(state.range(1)) / 100, state.range(2),
              state.range(3)) {}
  Layer(std::int64_t rows, double filled, std::int64_t inputs, std::int64_t outputs) {
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
  double flops, rate = 1e-6;
};

template <class Pawl, class Hand>
void compare(benchmark::State& state, Tensor Layer::*result, Pawl&& pawl, Hand&& by_hand) {
  torch::NoGradGuard no_grad;
  Layer ours(state), theirs(state);
  micro::compare(
      state, {.flops = ours.flops}, [&] { pawl(ours); }, [&] { by_hand(theirs); },
      [&] { at::mm_out(ours.product, ours.square, ours.square); });
  ours.rate = theirs.rate = 1;  // an update that shows
  pawl(ours), by_hand(theirs);
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

/// To and fro, so that thousands of steps do not add their rounding up.
void product_weights(benchmark::State& state) {
  compare(
      state, &Layer::w,
      [](Layer& l) {
        l.rate = -l.rate;
        pawl::LayerGradient{l.d, l.x}.add_to(l.w, l.rate);
      },
      [](Layer& l) {
        l.rate = -l.rate;
        at::mm_out(l.dw, l.d.t(), l.x);
        l.w.add_(l.dw, l.rate);
      });
}

void rows(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgNames({"rows", "filled", "inputs", "outputs"});
  benchmark->ArgsProduct({{10, 20, 64, 128, 600}, {100}, {784}, {400}});
  benchmark->ArgsProduct({{64, 128, 600}, {20, 50}, {784}, {400}});
  benchmark->ArgsProduct({{10, 20, 64, 128, 256}, {100}, {400, 1024, 4096, 9216}, {10}});
  benchmark->Apply(micro::turns<41>);
}
BENCHMARK(product_outputs)->Apply(rows);
BENCHMARK(product_inputs)->Apply(rows);
BENCHMARK(product_weights)->Apply(rows);

}  // namespace
