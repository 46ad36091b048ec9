#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <sstream>
#include <vector>

#include "optimizer.hpp"

namespace pawl {
inline namespace v0 {

/// Any optimizer of `torch::optim`, through a function that makes one for given parameters:
/// @code
///   TorchOptimizer{.make = [](auto parameters) {
///     return std::make_unique<torch::optim::RMSprop>(parameters,
///     torch::optim::RMSpropOptions(0.01));
///   }}
/// @endcode
/// It is made anew, without its state, when a head grows or a parameter is replaced.
struct TorchOptimizer {
  std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<Tensor>)> make;

  static constexpr char const* name = "torch";

  void step(Arena& arena) {
    prepare(arena);
    inner->step();
  }

  /// Makes the inner optimizer, where there is none for these parameters.
  void prepare(Arena& arena) {
    auto const& first = arena.parameters().front();
    if (inner && owner.is_same(first)) return;
    require(static_cast<bool>(make), "TorchOptimizer: set 'make' to a function that builds it");
    inner = make(arena.parameters());
    owner = first;
    if (saved.defined()) restore(*inner, saved);
  }

  /// That of the first group of parameters; 0 before `prepare`.
  double learning_rate() const {
    return inner ? inner->param_groups().front().options().get_lr() : 0;
  }
  /// Other groups keep their ratio to the first; where that has 0, they stay as they are.
  void set_learning_rate(double rate) {
    if (!inner) return;
    auto const before = learning_rate();
    for (auto& group : inner->param_groups()) {
      auto& options = group.options();
      if (options.get_lr() == before) {
        options.set_lr(rate);
      } else if (before != 0) {
        options.set_lr(options.get_lr() * rate / before);
      }
    }
  }
  void reset() { inner.reset(), saved.reset(); }

  /// The state of the inner optimizer travels as the bytes of LibTorch's own archive.
  void state(Archive& a) {
    if (a.mode == Archive::Mode::grow) return reset();
    if (a.saving() && inner) saved = bytes_of(*inner);
    a("bytes", saved);
    if (!a.loading()) return;
    inner.reset();
    if (saved.defined()) saved = saved.cpu();
  }

  // State: written by `step`.
  std::shared_ptr<torch::optim::Optimizer> inner{};
  Tensor saved{};  ///< bytes to restore when the optimizer is made
  Tensor owner{};  ///< first parameter of the arena that `inner` was made for

 private:
  static Tensor bytes_of(torch::optim::Optimizer& optimizer) {
    torch::serialize::OutputArchive archive;
    optimizer.save(archive);
    std::ostringstream stream;
    archive.save_to(stream);
    auto const text = stream.str();
    auto bytes = torch::empty({static_cast<std::int64_t>(text.size())}, torch::kUInt8);
    std::copy(text.begin(), text.end(), bytes.data_ptr<std::uint8_t>());
    return bytes;
  }
  static void restore(torch::optim::Optimizer& optimizer, Tensor const& bytes) {
    torch::serialize::InputArchive archive;
    archive.load_from(reinterpret_cast<char const*>(bytes.data_ptr<std::uint8_t>()),
                      static_cast<std::size_t>(bytes.numel()));
    optimizer.load(archive);
  }
};

}  // namespace v0
}  // namespace pawl
