#pragma once

#include <cstdint>
#include <vector>

#include "../products/kernels.hpp"
#include "met_operations.hpp"

namespace pawl {
inline namespace v0 {

// What follows convolutions whose images have their channels last: nodes of autograd's graph
// through which gradients come back in that layout.

/// Whether x is images [n, c, h, w] in that layout.
inline bool are_images(Tensor const& x) {
  return x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

/// Copies images [n, c, h, w] from that layout to the plain one or, if they are `plain`, to that
/// layout. Returns false, and copies nothing, where LibTorch has to.
inline bool copy_to_other_layout(Tensor const& x, bool plain, Tensor const& y) {
#ifdef PAWL_PRODUCTS
  auto const suits = plain ? x.dim() == 4 && x.is_contiguous() : are_images(x);
  if (!suits || !products::uses_own_products() || !MetOperations::is_plain(x)) return false;
  auto const n = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  auto const rows = plain ? channels : pixels, columns = plain ? pixels : channels;
  auto const* from = x.const_data_ptr<float>();
  auto* to = y.mutable_data_ptr<float>();
  auto const size = rows * columns;
  products::in_parallel(n, 1, n * size >> 16, [&](auto begin, auto end) {
    for (auto i = begin; i < end; ++i) {
      products::put_transposed({from + i * size, rows, columns, columns}, {to + i * size, rows});
    }
  });
  return true;
#else
  return static_cast<void>(x), static_cast<void>(plain), static_cast<void>(y), false;
#endif
}

/// Another shape, with numbers in their usual order: a copy.
struct PlainCopy : torch::autograd::Function<PlainCopy> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  static Tensor forward(Context* context, Tensor const& x, std::vector<std::int64_t> sizes) {
    context->saved_data["shape"] = x.sizes().vec();
    context->saved_data["images"] = are_images(x);
    auto y = at::empty(sizes, x.options().requires_grad(false));
    if (!copy_to_other_layout(x, false, y)) y.view(x.sizes()).copy_(x);
    return y;
  }
  static Tensors backward(Context* context, Tensors const& gradients) {
    auto const& d = gradients[0];
    if (!d.defined()) return {Tensor(), Tensor()};
    auto const shape = context->saved_data["shape"].toIntVector();
    auto const there = d.reshape(shape);
    auto const images = context->saved_data["images"].toBool();
    return {images ? with_channels_last(there) : there, Tensor()};
  }

 private:
  static Tensor with_channels_last(Tensor const& x) {
    if (!c10::GradMode::is_enabled()) {  // else it may be differentiated once more
      auto const y =
          at::empty(x.sizes(), x.options().memory_format(at::MemoryFormat::ChannelsLast));
      if (copy_to_other_layout(x, true, y)) return y;
    }
    return x.contiguous(at::MemoryFormat::ChannelsLast);
  }
};

/// The mean over the pixels of images.
struct MeanOfPixels : torch::autograd::Function<MeanOfPixels> {
  using Context = torch::autograd::AutogradContext;
  using Tensors = torch::autograd::variable_list;

  static Tensor forward(Context* context, Tensor const& x, bool keeps_dimensions) {
    context->saved_data["shape"] = x.sizes().vec();
    auto const rows = x.permute({0, 2, 3, 1}).flatten(1, 2);  // of pixels, in each image
    if (!keeps_dimensions) return rows.mean(1);
    auto const n = x.size(0), c = x.size(1);
    auto const y = at::empty_strided({n, c, 1, 1}, {c, 1, c, c}, rows.options());  // still so
    auto of_images = y.view({n, c});
    at::mean_out(of_images, rows, 1);
    return y;
  }
  static Tensors backward(Context* context, Tensors const& gradients) {
    auto const& d = gradients[0];
    if (!d.defined()) return {Tensor(), Tensor()};
    auto const shape = context->saved_data["shape"].toIntVector();
    auto const of_each = d.reshape({shape[0], shape[1], 1, 1}) / (shape[2] * shape[3]);
    return {of_each.expand(shape).contiguous(at::MemoryFormat::ChannelsLast), Tensor()};
  }
};

}  // namespace v0
}  // namespace pawl
