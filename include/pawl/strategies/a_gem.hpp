#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../memory/catalogue.hpp"
#include "../memory/rehearsal.hpp"

namespace pawl {
inline namespace v0 {

/// Averaged gradient episodic memory: never steps uphill on the average loss of the past (Chaudhry
/// et al., ICLR 2019).
///   r = gradient of the mean CE over memory rows of past experiences
///   g <- g - min(g.r, 0) / max(r.r, eps) r
/// Memory rows are not trained on. The memory is written during an experience and read in later
/// ones; without rows of the past the gradient is not touched. With a head per task, the heads of
/// the drawn rows take part in a step that is projected, and in no other.
///
/// State: the memory. Cost: one more forward and backward pass, over `batch` rows.
struct AGem {
  enum class Reference { eval, train };

  AnyMemory memory = Ring{.by = GroupBy::task_and_class, .per_group = 25};  ///< keeps the past
  std::int64_t batch = 256;  ///< rows of the reference gradient, >= 1; all while there are fewer
  Reference reference_mode = Reference::eval;  ///< mode of the module in the reference pass
  double eps = 1e-12;                          ///< least r.r, > 0

  static constexpr char const* name = "a_gem";
  static constexpr char const* about =
      "averaged gradient episodic memory (Chaudhry et al., ICLR 2019)";
  static constexpr bool plans_ahead = true;

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows of past experiences");
    o("batch", batch, at_least(1), "memory rows of the reference gradient; all while fewer");
    o("reference_mode", reference_mode, {"eval", "train"},
      "mode of the module in the reference pass (BatchNorm, dropout)");
    o("eps", eps, above(0), "least squared norm of the reference gradient");
  }

  bool capturable() const { return memory.planned(); }

  /// Draws the rows of the reference gradient; they are not trained on.
  Batch extend(Context& c, Batch b) {
    Sampler uniform;
    if (c.shard == 0) {
      drawn = draw_past(c, memory, batch, c.generator("draw.a_gem"), uniform);
    }
    return b;
  }

  void edit_gradient(Context& c) {
    if (drawn.size() == 0) return;
    std::vector<bool> used;
    auto const r = c.gradient_on(drawn, reference_mode == Reference::train, &used);
    auto const k = project(c.gradient(), r);
    // An idle head with a gradient of 0 would still be moved by momentum and decay. With one head
    // there is none, and nothing waits for the device.
    if (wakes(c.arena.active(), used) && k.item<double>() < 0) c.arena.activate(used);
  }

  void after_step(Context& c) {
    if (last_pass(c)) remember(c, memory, c.fresh, "memory.a_gem");
  }

  void state(Archive& a) { a.part("memory", memory); }

  // State: written by the hooks.
  Rows drawn{};  ///< of past experiences, for the present step

  /// g <- g - k r in place; g, r [P]. Returns k [] = min(g.r, 0) / max(r.r, eps). On a device
  /// nothing waits for it; on the host a gradient that is left as it is costs one inner product.
  Tensor project(Tensor const& g, Tensor const& r) const {
    auto const along = g.dot(r);
    if (g.is_cpu() && along.item<double>() >= 0) return torch::zeros_like(along);
    auto const k = along.clamp_max(0) / r.dot(r).clamp_min(eps);
    g.addcmul_(r, k, -1);
    return k;
  }

 private:
  static bool wakes(std::vector<bool> const& active, std::vector<bool> const& used) {
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (used[i] && !active[i]) return true;
    }
    return false;
  }
};

}  // namespace v0
}  // namespace pawl
