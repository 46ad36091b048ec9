#include "cost.hpp"

#include <algorithm>
#include <chrono>
#include <string_view>

#include <ATen/ops/mm.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/cuda.h>

#include <sys/resource.h>

namespace bench {

namespace {

using Operands = c10::ArrayRef<c10::IValue const>;

/// [.., n, k] times [.., k, m].
std::int64_t of_product(Operands operands, std::size_t first) {
  auto const& a = operands[first].toTensor();
  auto const& b = operands[first + 1].toTensor();
  return 2 * a.numel() * b.size(-1);
}

/// Every output element is a product with one filter: weight [out, in / groups, ...].
std::int64_t of_outputs(std::int64_t outputs, torch::Tensor const& weight) {
  return 2 * outputs * (weight.numel() / weight.size(0));
}

/// input, weight, bias, stride, padding, dilation, transposed, ...
std::int64_t of_convolution(Operands operands) {
  auto const& input = operands[0].toTensor();
  auto const& weight = operands[1].toTensor();
  if (operands[6].toBool()) return of_outputs(input.numel(), weight);
  auto const stride = operands[3].toIntVector(), padding = operands[4].toIntVector(),
             dilation = operands[5].toIntVector();
  auto outputs = input.size(0) * weight.size(0);
  for (std::int64_t d = 2; d < input.dim(); ++d) {
    auto const at = [d](auto const& list) {
      return list.size() == 1 ? list[0] : list[static_cast<std::size_t>(d - 2)];
    };
    auto const reach = at(dilation) * (weight.size(d) - 1) + 1;
    outputs *= (input.size(d) + 2 * at(padding) - reach) / at(stride) + 1;
  }
  return of_outputs(outputs, weight);
}

/// grad_output, input, weight, bias sizes, stride, padding, dilation, transposed, output padding,
/// groups, which of the three gradients are wanted.
std::int64_t of_convolution_backward(Operands operands) {
  auto const& moved = operands[operands[7].toBool() ? 1 : 0].toTensor();
  auto const wanted = operands[10].toBoolList();
  auto const products = static_cast<std::int64_t>(wanted.get(0)) + wanted.get(1);
  return products * of_outputs(moved.numel(), operands[2].toTensor());
}

}  // namespace

std::int64_t flops_of(at::RecordFunction const& call) {
  std::string_view const name = call.name();
  if (name == "aten::mm" || name == "aten::bmm" || name == "pawl::mm") {
    return of_product(call.inputs(), 0);
  }
  if (name == "aten::addmm" || name == "aten::addmm_" || name == "aten::baddbmm") {
    return of_product(call.inputs(), 1);
  }
  if (name == "aten::convolution") return of_convolution(call.inputs());
  if (name == "aten::convolution_backward") return of_convolution_backward(call.inputs());
  return 0;
}

void wait_for(torch::Device device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

double rate_of_products(torch::Device device) {
  using Clock = std::chrono::steady_clock;
  torch::NoGradGuard no_grad;
  std::int64_t const n = device.is_cpu() ? 1024 : 8192;
  auto const a = torch::ones({n, n}, device), b = torch::ones({n, n}, device);
  auto out = at::mm(a, b);
  wait_for(device);
  double best = 0;
  for (auto const start = Clock::now(); Clock::now() - start < std::chrono::seconds(1);) {
    auto const begin = Clock::now();
    at::mm_out(out, a, b);
    wait_for(device);
    auto const seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / seconds);
  }
  return best;
}

std::int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

std::optional<std::int64_t> peak_device_bytes(torch::Device device) {
  if (!device.is_cuda()) return std::nullopt;
  auto const stats = c10::getDeviceAllocator(device.type())
                         ->getDeviceStats(device.has_index() ? device.index() : 0);
  return stats.allocated_bytes[0].peak;
}

}  // namespace bench
