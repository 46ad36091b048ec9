#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "met_operations.hpp"

namespace pawl {
inline namespace v0 {

/// The convolutions of any module, wherever its forward uses them: images have their channels last
/// ("channels last"), in which LibTorch is faster, and so has what follows; but those of grouped,
/// transposed and unsafe convolutions have not. Behind them another shape, as in `h.view({n, -1})`
/// or `h.flatten(1)`, is a copy, through which gradients come back in that layout; what is written
/// through such a view is not seen in what it is a view of.
class ConvolutionLayers {
 public:
  /// Within it, this thread's convolutions go that way.
  struct Scope : MetOperations::Scope {
    explicit Scope(bool wanted)
        : MetOperations::Scope(ConvolutionLayers::wanted(), wanted && available()) {}
  };

  /// Whether the dispatcher knows about them; tells it, the first time.
  static bool available() { return MetOperations::told_of<ConvolutionLayers>(); }

  /// Images [n, c, h, w] in that layout. Of one channel both layouts are the same numbers, and
  /// strides say which is meant.
  static Tensor laid_out(Tensor const& x) {
    auto const last = x.contiguous(at::MemoryFormat::ChannelsLast);
    auto const h = x.size(2), w = x.size(3);
    return x.size(1) == 1 ? last.as_strided(x.sizes(), {h * w, 1, w, 1}) : last;
  }

  /// Whether LibTorch 2.13 writes out of bounds in the backward pass in that layout: where a 1x1
  /// convolution has a stride, and fewer channels than a vector register holds.
  static bool writes_out_of_bounds(at::IntArrayRef kernel, at::IntArrayRef stride,
                                   std::int64_t channels) {
    auto const pointwise = kernel[0] == 1 && kernel[1] == 1;
    return pointwise && (stride[0] > 1 || stride[1] > 1) && channels < 16;
  }

 private:
  friend class MetOperations;

  using Bias = std::optional<Tensor>;

  static bool& wanted() {
    thread_local bool here = false;
    return here;
  }

  static Tensor convolution(Tensor const& x, Tensor const& w, Bias const& bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, bool transposed,
                            c10::SymIntArrayRef output_padding, c10::SymInt groups) {
    MetOperations::Below const below;
    auto const suits = wanted() && x.dim() == 4 && w.dim() == 4 && MetOperations::is_plain(x) &&
                       !at::autocast::is_autocast_enabled(at::kCPU);
    auto const images = suits ? suitable(x, w, stride, transposed, groups) : x;
    return at::convolution_symint(images, w, bias, stride, padding, dilation, transposed,
                                  output_padding, groups);
  }

  static Tensor suitable(Tensor const& x, Tensor const& w, c10::SymIntArrayRef stride,
                         bool transposed, c10::SymInt const& groups) {
    auto const strides = c10::asIntArrayRefSlowOpt(stride);  // one, for both directions, or two
    auto const plain =
        transposed || groups != 1 || !strides || strides->empty() ||
        writes_out_of_bounds(w.sizes().slice(2), {strides->front(), strides->back()}, x.size(1));
    return plain ? plainly(x) : laid_out(x);
  }

  /// In the usual layout. Where that is another one, too, strides say which is meant.
  static Tensor plainly(Tensor const& x) {
    auto const y = x.contiguous();
    if (y.suggest_memory_format() == at::MemoryFormat::Contiguous) return y;
    auto const h = x.size(2), w = x.size(3);
    return y.as_strided(x.sizes(), {x.size(1) * h * w, h * w, w, 1});
  }

  /// Another shape, with numbers in their usual order.
  struct View : torch::autograd::Function<View> {
    using Context = torch::autograd::AutogradContext;
    using Tensors = torch::autograd::variable_list;

    static Tensor forward(Context* context, Tensor const& x, std::vector<std::int64_t> sizes) {
      context->saved_data["shape"] = x.sizes().vec();
      context->saved_data["images"] = are_images(x);
      auto y = at::empty(sizes, x.options().requires_grad(false));
      y.view(x.sizes()).copy_(x);
      return y;
    }
    static Tensors backward(Context* context, Tensors const& gradients) {
      auto const& d = gradients[0];
      if (!d.defined()) return {Tensor(), Tensor()};
      auto const shape = context->saved_data["shape"].toIntVector();
      auto const there = d.reshape(shape);
      auto const images = context->saved_data["images"].toBool();
      return {images ? there.contiguous(at::MemoryFormat::ChannelsLast) : there, Tensor()};
    }
  };

  static bool are_images(Tensor const& x) {
    return x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast);
  }

  /// Another shape of x, where that takes a copy; else, and where it is not wanted, undefined. A
  /// tensor that nothing is differentiated by, beside others, may be there to be written to.
  static Tensor copied(Tensor const& x, c10::SymIntArrayRef sizes) {
    auto const learns = x.requires_grad() || !c10::GradMode::is_enabled();
    auto const suits = wanted() && learns && !x.is_contiguous() && MetOperations::is_plain(x) &&
                       MetOperations::above_autograd();
    auto const concrete = suits ? c10::asIntArrayRefSlowOpt(sizes) : std::nullopt;
    if (!concrete) return {};
    auto const shape = at::infer_size_dv(*concrete, x.numel());
    if (at::detail::computeStride(x.sizes(), x.strides(), shape)) return {};
    return View::apply(x, std::vector<std::int64_t>(shape.begin(), shape.end()));
  }

  static Tensor view(Tensor const& x, c10::SymIntArrayRef sizes) {
    MetOperations::Below const below;
    auto const copy = copied(x, sizes);
    return copy.defined() ? copy : x.view_symint(sizes);
  }
  static Tensor reshape(Tensor const& x, c10::SymIntArrayRef sizes) {
    MetOperations::Below const below;
    auto const copy = are_images(x) ? copied(x, sizes) : Tensor();
    return copy.defined() ? copy : x.reshape_symint(sizes);
  }
  static Tensor flatten(Tensor const& x, std::int64_t first, std::int64_t last) {
    MetOperations::Below const below;
    auto const rows = are_images(x) && x.numel() > 0 && first == 1 && (last == -1 || last == 3);
    auto const copy = rows ? copied(x, {x.size(0), x.numel() / x.size(0)}) : Tensor();
    return copy.defined() ? copy : x.flatten(first, last);
  }

  static void meet(torch::Library& aten) {
    aten.impl("convolution", TORCH_FN(convolution));
    aten.impl("view", TORCH_FN(view));
    aten.impl("reshape", TORCH_FN(reshape));
    aten.impl("flatten.using_ints", TORCH_FN(flatten));
  }
};

}  // namespace v0
}  // namespace pawl
