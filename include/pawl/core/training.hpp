#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "augment.hpp"
#include "options.hpp"

namespace pawl {
inline namespace v0 {

/// Which outputs compete in the supervised loss; published numbers differ by it.
enum class Active {
  all,      ///< every output, from the start
  seen,     ///< labels of the experiences so far
  current,  ///< fresh rows: labels of this experience; other rows: those of their task, or the seen
            ///< ones
  batch     ///< labels that occur in the batch
};

enum class AtBoundary { keep, reset };

/// How the learning rate falls in the epochs of an experience.
enum class Schedule {
  milestones,  ///< by `lr_factor` at each of `lr_milestones`
  cosine  ///< along half a cosine wave to `lr_final` (Loshchilov, Hutter, ICLR 2017, one period)
};

/// How steps are computed. All give the same results to rounding.
enum class Engine {
  compiled,  ///< every fast path: without autograd's graph where the model is a chain of layers,
             ///< by pawl's products where it has linear ones, and on a device as recorded graphs
             ///< where the strategies allow it
  eager,     ///< the same, step by step: nothing is recorded
  reference  ///< autograd and plain LibTorch operations alone
};

/// Heads of tasks that do not occur in a step: left alone, or updated with a zero gradient (so that
/// momentum, Adam's moments and decay keep moving them, once they had a first gradient).
enum class IdleHeads { frozen, zero_gradient };

/// How an experience is trained.
struct Training {
  std::int64_t epochs = 1;
  std::int64_t iterations = 0;
  std::int64_t batch_size = 32;
  std::int64_t passes = 1;
  std::int64_t shards = 1;
  bool shuffle = true;
  bool drop_last = false;
  Active active = Active::all;
  AtBoundary optimizer_at_boundary = AtBoundary::keep;
  IdleHeads idle_heads = IdleHeads::frozen;
  double clip_norm = 0;
  Augment augment{};
  Schedule lr_schedule = Schedule::milestones;
  std::vector<std::int64_t> lr_milestones{};
  double lr_factor = 0.1;
  double lr_final = 0;
  std::int64_t lr_warmup = 0;
  Engine engine = Engine::compiled;

  /// Whether only autograd and plain LibTorch operations may be used.
  bool reference() const { return engine == Engine::reference; }

  void describe(Options& o) {
    o("epochs", epochs, at_least(1), "passes over each experience, shuffled anew");
    o.only_if(iterations == 0, "iterations = 0");
    o("iterations", iterations, at_least(0),
      "batches per experience instead of epochs, each of `passes` steps, the order drawn anew on "
      "exhaustion; 0: use epochs");
    o("batch_size", batch_size, at_least(1), "fresh rows per step");
    o("passes", passes, at_least(1), "consecutive steps on the same fresh rows (online streams)");
    o("shards", shards, at_least(1),
      "slices a step's batch is cut into (gradient accumulation); part of the result");
    o("shuffle", shuffle, "draw the order of rows from the seed; false keeps the given order");
    o("drop_last", drop_last, "leave out a last batch that is not full");
    o("active", active, {"all", "seen", "current", "batch"},
      "outputs that compete in the supervised loss");
    o("optimizer_at_boundary", optimizer_at_boundary, {"keep", "reset"},
      "moments of the optimizer at the start of an experience");
    o("idle_heads", idle_heads, {"frozen", "zero_gradient"},
      "heads of other tasks: untouched, or updated with a zero gradient");
    o("clip_norm", clip_norm, at_least(0),
      "largest norm of a step's gradient, a longer one is scaled down to it; 0: none");
    augment.describe(o);
    o("lr_schedule", lr_schedule, {"milestones", "cosine"},
      "learning rate in the epochs of an experience: by lr_factor at each of lr_milestones, or "
      "from 1 to lr_final along a cosine");
    o("lr_milestones", lr_milestones, at_least(1),
      "epochs of every experience after which the learning rate is multiplied by lr_factor");
    o.only_if(lr_schedule == Schedule::milestones, "lr_schedule = milestones");
    o("lr_factor", lr_factor, above(0), "of the learning rate at each of the lr_milestones");
    o.only_if(lr_schedule == Schedule::milestones && !lr_milestones.empty(),
              "there are lr_milestones");
    o("lr_final", lr_final, between(0, 1),
      "of lr_schedule = cosine: share of the learning rate that would be reached after the last "
      "epoch");
    o.only_if(lr_schedule == Schedule::cosine, "lr_schedule = cosine");
    o("lr_warmup", lr_warmup, at_least(0),
      "first epochs of every experience, W, in which epoch e = 0, 1, ... has share (e + 1) / (W + "
      "1) of the learning rate; a cosine starts after them");
    o("engine", engine, {"compiled", "eager", "reference"},
      "compiled: chains of linear layers run without autograd's graph, linear layers of other "
      "models by pawl's products, and a GPU replays recorded steps; eager: nothing is recorded; "
      "reference: autograd and LibTorch's operations alone");
  }

  /// What multiplies the learning rate in an epoch of an experience:
  ///   warm-up, e < W:  (e + 1) / (W + 1)
  ///   milestones:      lr_factor^(number of milestones passed)
  ///   cosine:          lr_final + (1 - lr_final) (1 + cos(pi (e - W) / (epochs - W))) / 2
  double rate(std::int64_t epoch) const {
    if (epoch < lr_warmup)
      return static_cast<double>(epoch + 1) / static_cast<double>(lr_warmup + 1);
    if (lr_schedule == Schedule::cosine) {
      auto const done =
          static_cast<double>(epoch - lr_warmup) / static_cast<double>(epochs - lr_warmup);
      return lr_final + (1 - lr_final) * (1 + std::cos(std::numbers::pi * done)) / 2;
    }
    double factor = 1;
    for (auto const milestone : lr_milestones) {
      if (epoch >= milestone) factor *= lr_factor;
    }
    return factor;
  }
};

}  // namespace v0
}  // namespace pawl
