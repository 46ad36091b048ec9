#pragma once

#include <cstdint>
#include <exception>
#include <optional>
#include <utility>

#include "../core/context.hpp"
#include "../engine/checks.hpp"
#include "recorded_steps.hpp"

namespace pawl {
inline namespace v0 {

/// Looks now and then whether the losses of steps that a device replays are finite, and does not
/// wait for it: what is noted is copied to the host when the device comes to it, and looked at when
/// the next is noted.
class LossWatch {
 public:
  explicit LossWatch(Context const& context) : c(context) {}

  /// Whether copies can go on while the host does something else.
  static bool works() {
    try {
      return at::empty({1}, torch::TensorOptions().pinned_memory(true)).defined();
    } catch (std::exception const&) {
      return false;
    }
  }

  /// Notes the losses of `step`, the last one that the device was asked for. Throws Diverged where
  /// those noted before are not finite.
  void note(std::int64_t step) {
    StepLosses losses{on_its_way(c.task_loss)};
    for (auto const& [name, value] : c.penalties) {
      losses.penalties.emplace_back(name, on_its_way(value));
    }
    c10::Event arrived(c.arena.device().type());
    arrived.record(
        c10::impl::VirtualGuardImpl(c.arena.device().type()).getStream(c.arena.device()));
    look();
    noted_ = {std::move(losses), step, has_label_of_no_class(c)};
    arrived_.emplace(std::move(arrived));
  }

  /// Looks at what is noted.
  void look() {
    if (!arrived_) return;
    arrived_->synchronize();
    arrived_.reset();
    look_at_losses(c, noted_.losses.task_loss, noted_.losses.penalties, noted_.step,
                   noted_.no_class);
  }

 private:
  struct Noted {
    StepLosses losses{};  ///< on the host
    std::int64_t step = 0;
    bool no_class = false;  ///< a row has a label of no class
  };

  static Tensor on_its_way(Tensor const& value) {
    auto to = at::empty(value.sizes(), value.options().device(torch::kCPU).pinned_memory(true));
    return to.copy_(value, /*non_blocking=*/true);
  }

  Context const& c;
  Noted noted_;
  std::optional<c10::Event> arrived_;
};

}  // namespace v0
}  // namespace pawl
