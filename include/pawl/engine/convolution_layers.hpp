#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "behind_convolutions.hpp"
#include "met_operations.hpp"

namespace pawl {
inline namespace v0 {

/// The convolutions of any module, wherever its forward uses them: images have their channels last
/// ("channels last"), in which LibTorch is faster, and so has what follows; but those of grouped,
/// transposed and unsafe convolutions have not. Behind them another shape, as in `h.view({n, -1})`
/// or `h.flatten(1)`, is a copy, through which gradients come back in that layout, as they do
/// through the mean over all pixels; what is written through such a view is not seen in what it is
/// a view of.
class ConvolutionLayers : public MetLayers<ConvolutionLayers> {
 public:
  /// What this thread's convolutions did in that layout.
  struct Work {
    double products = 0;  ///< pairs of numbers that were multiplied
    double copied = 0;    ///< numbers that were copied to another shape

    /// Whether what convolutions gain is more than what copies take, there and back: a product
    /// gains about a twentieth of what a number costs.
    bool pays() const { return products >= 20 * copied; }
  };
  static Work& work() {
    thread_local Work since_ever;
    return since_ever;
  }

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
  friend class MetLayers<ConvolutionLayers>;
  friend class MetOperations;

  using Bias = std::optional<Tensor>;

  static Tensor convolution(Tensor const& x, Tensor const& w, Bias const& bias,
                            c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                            c10::SymIntArrayRef dilation, bool transposed,
                            c10::SymIntArrayRef output_padding, c10::SymInt groups) {
    MetOperations::Below const below;
    auto const suits = wanted() && x.dim() == 4 && w.dim() == 4 && MetOperations::is_plain(x) &&
                       !at::autocast::is_autocast_enabled(at::kCPU);
    auto const images = suits ? suitable(x, w, stride, transposed, groups) : x;
    auto const y = at::convolution_symint(images, w, bias, stride, padding, dilation, transposed,
                                          output_padding, groups);
    if (suits && are_images(y)) {
      work().products += static_cast<double>(y.numel()) * static_cast<double>(w.numel()) /
                         static_cast<double>(y.size(1));
    }
    return y;
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

  /// Whether x lies in another layout than the plain one, and its gradients are to do so, too. A
  /// tensor that nothing is differentiated by, beside others, may be there to be written to.
  static bool keeps_layout(Tensor const& x) {
    auto const learns = x.requires_grad() || !c10::GradMode::is_enabled();
    return wanted() && learns && !x.is_contiguous() && MetOperations::is_plain(x) &&
           MetOperations::above_autograd();
  }

  /// Another shape of x, where that takes a copy; else, and where it is not wanted, undefined.
  static Tensor copied(Tensor const& x, c10::SymIntArrayRef sizes) {
    auto const concrete = keeps_layout(x) ? c10::asIntArrayRefSlowOpt(sizes) : std::nullopt;
    if (!concrete) return {};
    auto const shape = at::infer_size_dv(*concrete, x.numel());
    if (at::detail::computeStride(x.sizes(), x.strides(), shape)) return {};
    work().copied += static_cast<double>(x.numel());
    return PlainCopy::apply(x, std::vector<std::int64_t>(shape.begin(), shape.end()));
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

  static Tensor mean(Tensor const& x, at::OptionalIntArrayRef dimensions, bool keeps_dimensions,
                     std::optional<at::ScalarType> type) {
    MetOperations::Below const below;
    auto const suits = are_images(x) && x.numel() > 0 && are_pixels(dimensions) &&
                       type.value_or(x.scalar_type()) == x.scalar_type() && keeps_layout(x);
    return suits ? MeanOfPixels::apply(x, keeps_dimensions)
                 : at::mean(x, dimensions, keeps_dimensions, type);
  }

  static Tensor average_pool(Tensor const& x, c10::SymIntArrayRef size) {
    MetOperations::Below const below;
    auto const one = size.size() == 2 && size[0] == 1 && size[1] == 1;
    auto const suits = one && are_images(x) && x.numel() > 0 && keeps_layout(x);
    return suits ? MeanOfPixels::apply(x, true) : at::adaptive_avg_pool2d_symint(x, size);
  }

  /// Whether these dimensions of images are all but their number and their channels.
  static bool are_pixels(at::OptionalIntArrayRef dimensions) {
    if (!dimensions || dimensions->size() != 2) return false;
    auto const from_front = [&](std::size_t i) {
      auto const d = (*dimensions)[i];
      return d < 0 ? d + 4 : d;
    };
    return std::min(from_front(0), from_front(1)) == 2 &&
           std::max(from_front(0), from_front(1)) == 3;
  }

  static void meet(torch::Library& aten) {
    aten.impl("convolution", TORCH_FN(convolution));
    aten.impl("mean.dim", TORCH_FN(mean));
    aten.impl("adaptive_avg_pool2d", TORCH_FN(average_pool));
    aten.impl("view", TORCH_FN(view));
    aten.impl("reshape", TORCH_FN(reshape));
    aten.impl("flatten.using_ints", TORCH_FN(flatten));
  }
};

}  // namespace v0
}  // namespace pawl
