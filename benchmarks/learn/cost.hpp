#pragma once

// What work costs: floating-point operations, the rate a device could reach, memory.

#include <cstdint>
#include <optional>

#include <pawl/torch.hpp>

namespace bench {

/// Additions and multiplications that a LibTorch call makes in matrix products and convolutions,
/// from the shapes of its operands; 0 for any other call.
std::int64_t flops_of(at::RecordFunction const& call);

/// Floating-point operations per second of large float32 products, under the threads and the
/// precision that are set. Takes a second.
double rate_of_products(torch::Device device);

/// Returns when a device has done all that it was asked for.
void wait_for(torch::Device device);

/// Most resident memory of the process so far, in bytes.
std::int64_t peak_bytes();

/// Most bytes that tensors have taken on a device since the process began; none on the host.
std::optional<std::int64_t> peak_device_bytes(torch::Device device);

}  // namespace bench
