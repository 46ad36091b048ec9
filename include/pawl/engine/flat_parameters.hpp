#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/archive.hpp"
#include "../core/model.hpp"
#include "../device/fleet.hpp"
#include "../device/step_table.hpp"
#include "pages.hpp"

namespace pawl {
inline namespace v0 {

/// Numbers `begin` to `end` of a flat tensor. Views that autograd does not have to know about take
/// half the time, and there are several for each block of the weights.
inline Tensor range_of(Tensor const& flat, std::int64_t begin, std::int64_t end) {
  if (flat.requires_grad() || end > flat.size(0)) return flat.narrow(0, begin, end - begin);
  at::AutoDispatchBelowADInplaceOrView const untracked;
  return flat.slice(0, begin, end);
}

/// All trainable parameters of a module as views of one flat tensor (slices aligned to 64 bytes).
/// Gaps between slices hold zeros.
///
/// Another dtype or device, `torch::load` and replaced submodules unbind parameters from the flat
/// tensor; `ensure()` notices and binds anew, keeping the parameters' values.
class FlatParameters {
 public:
  /// True while the first and the last parameter still lie where they were put (cheap, every step).
  bool bound() const {
    return !parameters_.empty() && at_home(0) && at_home(parameters_.size() - 1);
  }

  Tensor const& weights() const { return weights_; }  ///< [P], the parameters themselves
  Layout const& layout() const { return layout_; }
  std::vector<Tensor> const& parameters() const { return parameters_; }
  torch::Dtype dtype() const { return weights_.scalar_type(); }
  torch::Device device() const { return weights_.device(); }

  /// Which parameter a tensor is; -1: none, or one without numbers, or one that was moved away.
  std::int64_t index_of(Tensor const& tensor) const {
    if (parameters_.empty() || !tensor.has_storage() ||
        !tensor.storage().is_alias_of(weights_.storage()))
      return -1;
    auto const offset = tensor.storage_offset() - weights_.storage_offset();
    auto const i = parameter_at(offset);
    return parameters_[i].is_same(tensor) ? static_cast<std::int64_t>(i) : -1;
  }

  /// The parameter to which number `offset` of a flat tensor belongs, or the gap after it.
  std::size_t parameter_at(std::int64_t offset) const {
    auto const next = std::upper_bound(layout_.begin(), layout_.end(), offset,
                                       [](auto at, auto const& span) { return at < span.offset; });
    return static_cast<std::size_t>(next - layout_.begin() - 1);
  }

  /// The part of a flat tensor [P] that belongs to parameter i, in its shape.
  Tensor parameter_view(Tensor const& flat, std::size_t i) const {
    return flat.narrow(0, layout_[i].offset, layout_[i].size).view(layout_[i].shape);
  }

  /// The same with the gap after it, as a vector.
  Tensor slice(Tensor const& flat, std::size_t i) const {
    return range_of(flat, layout_[i].offset, slice_end(i));
  }

  /// Where the slice of parameter i ends, with the gap after it: a multiple of 16.
  std::int64_t slice_end(std::size_t i) const {
    return layout_[i].offset + aligned(layout_[i].size);
  }

  /// Makes the gaps between slices of a flat tensor [P] zero.
  void clear_gaps(Tensor const& flat) const {
    for (std::size_t i = 0; i < layout_.size(); ++i) {
      auto const end = layout_[i].offset + layout_[i].size, gap = slice_end(i) - end;
      if (gap > 0) flat.narrow(0, end, gap).zero_();
    }
  }

 protected:
  /// Collects the trainable parameters of `module` and makes them views of `weights`.
  /// Throws, and changes nothing, when there are none or when they differ in dtype or device.
  void bind(nn::Module& module) {
    std::vector<Tensor> parameters;
    Layout layout;
    std::int64_t offset = 0;
    each_trainable(module, [&](std::string const& name, Tensor const& p) {
      parameters.push_back(p);
      layout.push_back({name, p.sizes().vec(), offset, p.numel()});
      offset = aligned(offset + p.numel());
    });
    require(!parameters.empty(),
            {"the module '", module.name(),
             "' has no trainable parameter; give one that has, or set requires_grad"});
    auto const& first = parameters.front();
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      auto const& p = parameters[i];
      require(p.is_floating_point() && p.scalar_type() == first.scalar_type() &&
                  p.device() == first.device(),
              {"parameter '", layout[i].name, "' is ", p.scalar_type(), " on ", p.device(),
               " but '", layout[0].name, "' is ", first.scalar_type(), " on ", first.device(),
               "; give the whole module one floating type and device with module->to(...)"});
    }
    torch::NoGradGuard no_grad;
    weights_ = zeros(offset, first.options().requires_grad(false));
    parameters_ = std::move(parameters);
    layout_ = std::move(layout);
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      auto view = parameter_view(weights_, i);
      view.copy_(parameters_[i]);
      parameters_[i].set_data(view);
      if (parameters_[i].grad().defined()) parameters_[i].mutable_grad() = Tensor();
    }
  }

  /// Binds anew when any parameter was moved, replaced or added. Returns whether it did.
  bool ensure(nn::Module& module) {
    std::size_t count = 0;
    bool home = true;
    each_trainable(module, [&](std::string const&, Tensor const& p) {
      home = home && count < parameters_.size() && p.is_same(parameters_[count]) && at_home(count);
      ++count;
    });
    if (home && count == parameters_.size()) return false;
    bind(module);
    return true;
  }

  /// Zeros [n]; on a device that learners share, beside those of the others.
  static Tensor zeros(std::int64_t n, at::TensorOptions const& options) {
    auto* fleet = options.device().is_cpu() || pawl::recording() ? nullptr : Fleet::here();
    return fleet != nullptr ? fleet->room(n, options) : zeros_on_huge_pages(n, options);
  }

 private:
  /// Calls f(name, parameter) for every trainable parameter. LibTorch lists those of a module that
  /// is registered under two names twice; here they come once, under the first.
  template <class F>
  static void each_trainable(nn::Module& module, F&& f) {
    c10::SmallVector<void const*, 16> seen;
    for (auto const& item : module.named_parameters()) {
      void const* const identity = item.value().unsafeGetTensorImpl();
      if (!item.value().requires_grad()) continue;
      if (std::find(seen.begin(), seen.end(), identity) != seen.end()) continue;
      seen.push_back(identity);
      f(item.key(), item.value());
    }
  }

  static std::int64_t aligned(std::int64_t n) { return (n + 15) / 16 * 16; }

  bool at_home(std::size_t i) const {
    auto const& p = parameters_[i];
    if (p.numel() != layout_[i].size) return false;
    return p.numel() == 0 || p.data_ptr() == static_cast<char*>(weights_.data_ptr()) +
                                                 layout_[i].offset * static_cast<std::int64_t>(
                                                                         weights_.element_size());
  }

  std::vector<Tensor> parameters_;
  Layout layout_;
  Tensor weights_;
};

}  // namespace v0
}  // namespace pawl
