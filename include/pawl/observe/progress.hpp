#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "../core/context.hpp"

#include <unistd.h>

namespace pawl {
inline namespace v0 {

/// A live line on stderr, at most ten times a second, and only where stderr is a terminal.
struct Progress {
  std::string label = {};  ///< written first, "seed 3" say

  static constexpr bool only_losses = true;

  void begin(Context const&) { started = last = clock::now(); }

  void step(Context const& c) {
    if (!terminal) return;
    auto const now = clock::now();
    if (now - last < std::chrono::milliseconds(100)) return;
    last = now;
    auto const seconds = std::chrono::duration<double>(now - started).count();
    auto const rows = static_cast<double>(c.step * c.training.batch_size);
    std::fprintf(stderr, "\r\033[K%s experience %ld  step %ld/%ld  loss %.4f  %.0f samples/s",
                 label.c_str(), static_cast<long>(c.index), static_cast<long>(c.step),
                 static_cast<long>(c.steps), c.task_loss.item<double>(), rows / seconds);
  }

  void end(Context const&) {
    if (terminal) std::fprintf(stderr, "\r\033[K");
  }

  // State: written by the hooks.
  using clock = std::chrono::steady_clock;
  bool terminal = ::isatty(STDERR_FILENO) != 0;
  clock::time_point started = {}, last = {};
};

}  // namespace v0
}  // namespace pawl
