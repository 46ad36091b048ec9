#pragma once

#include <cstdint>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

using Tensors = c10::SmallVector<Tensor, 16>;

/// Tensors of one shape [...] as one [S, ...] in the same memory; undefined, where they do not lie
/// at equal distances in one piece of it.
inline Tensor in_one_piece(Tensors const& parts) {
  auto const& first = parts.front();
  auto const step = parts.size() > 1 ? parts[1].storage_offset() - first.storage_offset() : 0;
  auto offset = first.storage_offset();
  for (auto const& each : parts) {
    auto const fits = each.sizes() == first.sizes() && each.strides() == first.strides() &&
                      each.storage_offset() == offset && each.is_alias_of(first);
    if (!fits || step < first.numel()) return {};
    offset += step;
  }
  auto sizes = first.sizes().vec(), strides = first.strides().vec();
  sizes.insert(sizes.begin(), static_cast<std::int64_t>(parts.size()));
  strides.insert(strides.begin(), step);
  return first.variable_data().as_strided(sizes, strides, first.storage_offset());
}

/// The same; a copy, where they lie apart.
inline Tensor stacked(Tensors const& parts) {
  auto const view = in_one_piece(parts);
  return view.defined() ? view : at::stack(c10::ArrayRef<Tensor>(parts.data(), parts.size()));
}

}  // namespace v0
}  // namespace pawl
