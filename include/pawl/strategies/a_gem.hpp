#pragma once

#include <cstdint>
#include <vector>

#include "../core/context.hpp"
#include "../memory/catalogue.hpp"
#include "../memory/draw.hpp"
#include "../memory/tasks.hpp"

namespace pawl {
inline namespace v0 {

/// Averaged gradient episodic memory: never step uphill on the average loss of the memory (Chaudhry
/// et al., ICLR 2019).
///   r = gradient of the mean CE over rows of past experiences
///   g <- g - min(g.r, 0) / max(r.r, eps) r
/// Memory rows are not trained on. The memory is written during an experience and read in later
/// ones.
struct AGem {
  enum class Reference { eval, train };

  AnyMemory memory = Ring{.by = GroupBy::task_and_class, .per_group = 25};
  std::int64_t batch = 256;
  Reference reference_mode = Reference::eval;
  double eps = 1e-12;

  static constexpr char const* name = "a_gem";
  static constexpr char const* about =
      "averaged gradient episodic memory (Chaudhry et al., ICLR 2019)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows of past experiences");
    o("batch", batch, at_least(1), "memory rows of the reference gradient; all while fewer");
    o("reference_mode", reference_mode, {"eval", "train"},
      "mode of the module in the reference pass (BatchNorm, dropout)");
    o("eps", eps, above(0), "least squared norm of the reference gradient");
  }

  void edit_gradient(Context& c) {
    if (memory.empty()) return;
    Sampler sampler;
    auto const rows =
        sampler(memory, batch, c.generator("draw.a_gem"), other_tasks(memory_task(c)));
    if (rows.size() == 0) return;
    std::vector<bool> used;
    auto const r =
        c.gradient_on(without_own_tasks(c, rows), reference_mode == Reference::train, &used);
    auto const& g = c.gradient();
    auto const k = g.dot(r).clamp_max(0) / r.dot(r).clamp_min(eps);
    g.sub_(r * k);
    c.arena.activate(used);
  }

  void after_step(Context& c) {
    if (c.pass == 0) memory.insert(with_tasks(c, c.fresh), c.run_generator("memory.a_gem"));
  }

  void state(Archive& a) { a.part("memory", memory); }
};

}  // namespace v0
}  // namespace pawl
