#pragma once

#include <algorithm>
#include <cstdint>

#include "../torch.hpp"
#include "error.hpp"
#include "options.hpp"
#include "random.hpp"

namespace pawl {
inline namespace v0 {

/// How training images are varied, anew whenever they are shown: fresh rows in every step, replayed
/// ones in every draw. What memories keep is not varied, nor what is tested or estimated from
/// (Fisher information, class means).
struct Augment {
  std::int64_t crop = 0;  ///< largest shift in pixels, each way; zeros come in at the border
  bool flip = false;      ///< mirror half of the images, left to right

  void describe(Options& o) {
    o("augment_crop", crop, between(0, 1024),
      "zeros put around training images, of which a random window of their own size is cut; 0: "
      "none");
    o("augment_flip", flip, "mirror training images left to right, each with probability 1/2");
  }

  bool any() const { return crop > 0 || flip; }

  /// Draws how each of n images is shown: [n, 3] int64 on the host, how far down and right
  /// of each pixel its value is taken from, and whether it is mirrored.
  Tensor draw(std::int64_t n, Generator generator) const {
    auto views = torch::zeros({n, 3}, torch::kInt64);
    auto* view = views.data_ptr<std::int64_t>();
    for (std::int64_t i = 0; i < n; ++i, view += 3) {
      if (crop > 0) view[0] = generator.below(2 * crop + 1) - crop;
      if (crop > 0) view[1] = generator.below(2 * crop + 1) - crop;
      if (flip) view[2] = generator.below(2);
    }
    return views;
  }
};

/// What `augmented` does, for bytes on the host: line by line, without the table of positions that
/// a device needs.
inline Tensor augmented_lines(Tensor const& images, Tensor const& views) {
  auto result = torch::zeros_like(images);
  auto const channels = images.size(1), height = images.size(2), width = images.size(3);
  auto const* from = images.data_ptr<std::uint8_t>();
  auto* to = result.data_ptr<std::uint8_t>();
  auto const* view = views.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < images.size(0); ++i, view += 3) {
    auto const down = view[0], right = view[1];
    auto const first = std::max<std::int64_t>(-right, 0);  // column that lies in the image
    auto const last = std::min(width - right, width);      // column after the last one that does
    for (std::int64_t line = 0; line < channels * height; ++line, from += width, to += width) {
      auto const y = line % height + down;
      if (y < 0 || y >= height || first >= last) continue;
      auto const *begin = from + down * width + right + first, *end = begin + (last - first);
      if (view[2] == 0) {
        std::copy(begin, end, to + first);
      } else {
        std::reverse_copy(begin, end, to + (width - last));
      }
    }
  }
  return result;
}

/// Images [n, C, H, W] as `views` [n, 3] say, which lie beside them: pixel (y, x) is the one that
/// was at (y + down, x + right), 0 outside of the image; a mirrored one is turned round after that.
inline Tensor augmented(Tensor const& images, Tensor const& views) {
  require(images.dim() == 4, {"augment: images must be [n, C, H, W], not ", images.sizes()});
  if (images.is_cpu() && images.is_contiguous() && images.scalar_type() == torch::kUInt8) {
    return augmented_lines(images, views);
  }
  auto const n = images.size(0), height = images.size(2), width = images.size(3);
  auto const line = [&](std::int64_t size) { return torch::arange(size, views.options()); };
  auto const across = line(width), mirrored = views.narrow(1, 2, 1);
  auto const y = line(height) + views.narrow(1, 0, 1);
  auto const x = across + mirrored * (width - 1 - 2 * across) + views.narrow(1, 1, 1);
  auto const inside = [](Tensor const& at, std::int64_t size) { return (at >= 0).mul(at < size); };
  auto const seen = inside(y, height).unsqueeze(2).mul(inside(x, width).unsqueeze(1));
  auto const from =
      y.clamp(0, height - 1).unsqueeze(2) * width + x.clamp(0, width - 1).unsqueeze(1);
  auto const flat = images.reshape({n, images.size(1), height * width});
  auto const pixels = from.view({n, 1, height * width}).expand_as(flat);
  auto result = flat.gather(2, pixels).view_as(images);
  return result.masked_fill_(seen.logical_not().unsqueeze(1), 0);
}

}  // namespace v0
}  // namespace pawl
