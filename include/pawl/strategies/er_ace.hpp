#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../core/context.hpp"
#include "../memory/catalogue.hpp"
#include "../memory/draw.hpp"
#include "../memory/tasks.hpp"

namespace pawl {
inline namespace v0 {

/// Asymmetric cross-entropy: stop batches of new classes from pushing old logits down (Caccia et
/// al., ICLR 2022).
///   L = mean_fresh CE over allowed classes + mean_replayed CE over seen classes
/// allowed = classes in the fresh batch, and (`keep_unseen`) classes never seen so far. Other
/// logits count as -1e9.
struct ErAce {
  enum class Seen { met, announced };
  enum class Over { seen, all };

  AnyMemory memory = Reservoir{};
  std::int64_t batch = 0;
  bool keep_unseen = true;
  Seen seen = Seen::met;
  Over replay_over = Over::seen;
  bool from_second = false;
  bool halve = false;

  static constexpr char const* name = "er_ace";
  static constexpr char const* about =
      "replay with an asymmetric cross-entropy (Caccia et al., ICLR 2022)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows of the past");
    o("batch", batch, at_least(0), "replayed rows per step; 0: as many as fresh ones");
    o("keep_unseen", keep_unseen, "classes never seen so far compete in the loss of fresh rows");
    o("seen", seen, {"met", "announced"},
      "a class is seen once it occurred in a batch, or once its experience began");
    o("replay_over", replay_over, {"seen", "all"}, "classes that compete for replayed rows");
    o("from_second", from_second, "plain cross-entropy and no replay in the first experience");
    o("halve", halve, "halve the sum of the two means");
  }

  Batch extend(Context& c, Batch b) {
    if (c.shard == 0) drawn = draw(c);
    if (drawn.size() == 0) return b;
    auto const slice = c.slice(drawn.size());
    b.append(this, drawn.slice(slice.begin, slice.end), drawn.size());
    return b;
  }

  Tensor loss(Context& c) {
    if (from_second && c.index == 0) return c.weighted_cross_entropy();
    auto const count = c.logits.size(1);
    auto const known = column_mask(seen == Seen::met ? c.met : c.seen, count);
    auto allowed = torch::zeros({count}, torch::kBool);
    allowed.index_fill_(0, c.fresh.labels, true);
    if (keep_unseen) allowed.logical_or_(known.logical_not());
    auto value = share(c, c.batch.parts.front(), allowed);
    if (auto const* part = c.batch.part(this)) {
      auto const open = replay_over == Over::seen ? known : torch::ones_like(known);
      value = value + share(c, *part, open);
    }
    return halve ? value / 2 : value;
  }

  void after_step(Context& c) {
    if (c.pass == 0) memory.insert(with_tasks(c, c.fresh), c.run_generator("memory.er_ace"));
  }

  void state(Archive& a) { a.part("memory", memory); }

  // State: written by the hooks.
  Rows drawn;  ///< of the present step

 private:
  Rows draw(Context& c) {
    if (memory.empty() || (from_second && c.index == 0)) return {};
    auto const n = batch > 0 ? batch : c.fresh.size();
    return without_own_tasks(c, memory.draw(n, c.generator("draw.er_ace")));
  }

  /// What the rows of a part in this shard add to their mean over the step.
  static Tensor share(Context const& c, Part const& part, Tensor const& open) {
    auto z = c.logits.narrow(0, part.begin, part.size);
    if (!c.model.per_task()) z = z.masked_fill(open.logical_not().to(z.device()), -1e9);
    return at::cross_entropy_loss(z, part.rows.y, {}, at::Reduction::Sum) /
           static_cast<double>(part.step_size);
  }
};

}  // namespace v0
}  // namespace pawl
