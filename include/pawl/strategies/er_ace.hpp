#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../memory/catalogue.hpp"
#include "../memory/rehearsal.hpp"

namespace pawl {
inline namespace v0 {

/// Replay with an asymmetric cross-entropy: stops batches of new classes from pushing the logits of
/// old ones down (Caccia et al., ICLR 2022).
///   L = mean_fresh CE over allowed classes + mean_replayed CE over seen classes
/// allowed = classes in the step's fresh batch and, with keep_unseen, those never seen so far. All
/// other logits count as -1e9, so their gradient is 0. `Training::active` does not apply, and heads
/// per task are not masked. Rows of other strategies count like replayed ones, with their weights.
struct ErAce {
  enum class Seen { met, announced };
  enum class Over { seen, all };

  AnyMemory memory = Reservoir{};    ///< what keeps rows of the past
  std::int64_t batch = 0;            ///< replayed rows per step, >= 0; 0: as many as fresh ones
  bool keep_unseen = true;           ///< classes never seen compete in the loss of fresh rows; of
                                     ///< no effect with a growing head
  Seen seen = Seen::met;             ///< once in a batch, or once announced by an experience
  Over replay_over = Over::seen;     ///< classes that compete for replayed rows
  bool from_second = false;          ///< plain CE, no replay in the first experience (task-aware)
  bool halve = false;                ///< halve the sum of the two means
  Forward forward = Forward::joint;  ///< joint | separate (as published)

  static constexpr char const* name = "er_ace";
  static constexpr char const* about =
      "replay with an asymmetric cross-entropy (Caccia et al., ICLR 2022)";
  static constexpr bool plans_ahead = true;

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows of the past");
    o("batch", batch, at_least(0), "replayed rows per step; 0: as many as fresh ones");
    o("keep_unseen", keep_unseen,
      "classes never seen so far compete in the loss of fresh rows; of no effect with a growing "
      "head");
    o("seen", seen, {"met", "announced"},
      "a class is seen once it occurred in a batch, or once its experience began");
    o("replay_over", replay_over, {"seen", "all"}, "classes that compete for replayed rows");
    o("from_second", from_second, "plain cross-entropy and no replay in the first experience");
    o("halve", halve, "halve the sum of the two means");
    o("forward", forward, {"joint", "separate"},
      "replayed rows in the forward pass of the fresh ones, or in one of their own");
  }

  bool capturable() const { return memory.planned(); }

  Batch extend(Context& c, Batch b) {
    if (c.shard == 0) {
      drawn = plain(c) ? Rows{} : draw_rows(c, memory, batch, "draw.er_ace");
      note_replayed();
      depends_on(static_cast<std::int64_t>(replayed.size()));
    }
    if (forward == Forward::joint) append_share(c, b, this, drawn);
    return b;
  }

  Tensor loss(Context& c) {
    if (plain(c)) return c.weighted_cross_entropy();
    auto const count = c.logits.size(1);
    auto const known = constant(column_mask(seen == Seen::met ? c.met : c.seen, count)
                                    .logical_or_(column_mask(replayed, count)),
                                c.logits.device());
    auto allowed = torch::zeros_like(known);
    allowed.index_fill_(0, c.fresh.y, true);  // on the device: other classes in every step
    auto const grows = !c.model.heads.empty();
    if (keep_unseen && !grows) allowed.logical_or_(known.logical_not());
    auto const open = replay_over == Over::seen ? known : torch::ones_like(known);
    auto value = torch::zeros({}, c.logits.options());
    for (auto const& part : c.batch.parts) {
      auto const z = c.logits.narrow(0, part.begin, part.size);
      auto const weight =
          std::isnan(part.weight) ? 1.0 / static_cast<double>(part.step_size) : part.weight;
      if (weight == 0) continue;
      value = value + sum(c, z, part.rows.y, part.owner == nullptr ? allowed : open) * weight;
    }
    if (forward == Forward::separate) value = value + replayed_apart(c, open);
    return halve && drawn.size() > 0 ? value / 2 : value;
  }

  void after_step(Context& c) {
    if (last_pass(c)) remember(c, memory, c.fresh, "memory.er_ace");
  }

  void state(Archive& a) {
    a.part("memory", memory);
    a("replayed", replayed);
  }

  // State: written by the hooks.
  Rows drawn{};                          ///< for the present step
  std::vector<std::int64_t> replayed{};  ///< labels that draws have had so far, ascending

 private:
  bool plain(Context const& c) const { return from_second && c.old_classes.empty(); }

  /// A replayed row has occurred in a batch too. This matters for a memory that was filled
  /// elsewhere.
  void note_replayed() {
    for (auto const label : host_column(drawn.labels)) {
      auto const at = std::lower_bound(replayed.begin(), replayed.end(), label);
      if (at == replayed.end() || *at != label) replayed.insert(at, label);
    }
  }

  /// Sum over rows of the CE over the open columns.
  static Tensor sum(Context const& c, Tensor const& z, Tensor const& y, Tensor const& open) {
    auto const masked = c.model.per_task() ? z : z.masked_fill(open.logical_not(), -1e9);
    return at::cross_entropy_loss(masked, y, {}, at::Reduction::Sum);
  }

  Tensor replayed_apart(Context& c, Tensor const& open) const {
    auto const rows = share(c, drawn);
    if (rows.size() == 0) return torch::zeros({}, c.logits.options());
    auto const z = forward_apart(c, rows, "model.er_ace");
    c.check_labels(host_column(rows.labels.contiguous()), z.size(1));
    return sum(c, z, rows.y, open) / static_cast<double>(drawn.size());
  }
};

}  // namespace v0
}  // namespace pawl
