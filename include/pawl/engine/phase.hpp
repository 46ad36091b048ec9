#pragma once

#include <string>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// A part of a training step, for as long as this object lives: a user scope of LibTorch's
/// profiler, named "pawl: forward" or "pawl: replay.extend". `pawl-bench profile` adds them up; any
/// other listener of LibTorch (its profilers, NVTX) sees them too. Where nobody listens it costs
/// one look at a thread's list of callbacks.
class Phase {
 public:
  static constexpr char const* prefix = "pawl: ";

  explicit Phase(char const* name) {
    if (scope_.isActive()) scope_.before(std::string(prefix) + name);
  }
  /// A hook of a strategy; its name is asked for only where somebody listens.
  Phase(std::string (*strategy)(), char const* hook) {
    if (scope_.isActive()) scope_.before(prefix + strategy() + "." + hook);
  }
  Phase(Phase const&) = delete;
  Phase& operator=(Phase const&) = delete;

  /// The part is over.
  void end() { scope_.end(); }

 private:
  at::RecordFunction scope_{at::RecordScope::USER_SCOPE};
};

}  // namespace v0
}  // namespace pawl
