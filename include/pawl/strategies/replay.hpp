#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../memory/catalogue.hpp"
#include "../memory/rehearsal.hpp"

namespace pawl {
inline namespace v0 {

/// Experience replay: trains on a mixture of the present and a small sample of the past (Robins,
/// Connection Science 1995; Rolnick et al., NeurIPS 2019; Chaudhry et al., arXiv 2019). With B
/// fresh and m replayed rows:
///   joint:       L = 1/(B + m) sum over all rows of CE
///   fixed:       L = a mean_fresh CE + (1 - a) mean_replayed CE,   a = new_weight
///   one_over_t:  the same with a = 1/t in experience t = 1, 2, ...
///   sum:         L = mean_fresh CE + mean_replayed CE
/// A step without replayed rows is naive, bit for bit. Replayed rows share the forward pass of the
/// fresh ones, so BatchNorm sees both.
///
/// With mix = dataset nothing is drawn: the memory, repeated max(floor(N/M), 1) times, joins the N
/// rows of the experience and is shuffled with them (naive rehearsal of Hsu et al., arXiv 2018).
struct Replay {
  enum class Insert { online, at_end };
  enum class Weighting { joint, fixed, one_over_t, sum };
  enum class Mix { step, dataset };

  AnyMemory memory = Reservoir{};          ///< what keeps rows of the past
  std::int64_t batch = 0;                  ///< m, >= 0; 0: as many as fresh rows
  Insert insert = Insert::online;          ///< after every step, or when an experience ends
  Draw draw = Draw::uniform;               ///< how replayed rows are chosen
  bool drop_last = false;                  ///< of draw = cycle: leave out a last short batch
  Weighting weighting = Weighting::joint;  ///< of fresh and replayed rows in the loss
  double new_weight = 0.5;                 ///< a of weighting = fixed, in [0, 1]
  bool exclude_current = false;            ///< do not replay rows of the present experience
  Mix mix = Mix::step;                     ///< replay in every step, or enlarge the training set

  static constexpr char const* name = "replay";
  static constexpr char const* about =
      "experience replay from a memory (Robins 1995; Rolnick et al., NeurIPS 2019; Chaudhry et "
      "al., arXiv 2019)";
  static constexpr bool plans_ahead = true;

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows of the past");
    o("batch", batch, at_least(0), "replayed rows per step; 0: as many as fresh ones");
    o("insert", insert, {"online", "at_end"},
      "write to the memory after every step, or at the end of an experience");
    o("draw", draw, draw_names, "how replayed rows are chosen");
    o("drop_last", drop_last, "of draw = cycle: leave out a last short batch of a pass");
    o.only_if(draw == Draw::cycle, "draw = cycle");
    o("weighting", weighting, {"joint", "fixed", "one_over_t", "sum"},
      "one mean over all rows; share new_weight to the fresh ones; share 1/t in experience t; or "
      "the "
      "mean over the fresh ones plus that over the replayed ones");
    o("new_weight", new_weight, between(0, 1),
      "of weighting = fixed: share of the fresh rows in the loss");
    o.only_if(weighting == Weighting::fixed, "weighting = fixed");
    o("exclude_current", exclude_current, "do not replay rows of the present experience");
    o("mix", mix, {"step", "dataset"},
      "add replayed rows to every step, or the whole memory to the training set (needs insert = "
      "at_end)");
  }

  /// A cycle goes on with every draw, so a draw cannot be asked for again.
  bool capturable() const { return memory.planned() && draw != Draw::cycle; }

  void begin(Context&, Experience const&) {
    if (mix == Mix::step) return;
    require(insert == Insert::at_end,
            "replay: mix = dataset fixes the training set when an experience begins; set insert = "
            "at_end");
    require(weighting == Weighting::joint,
            "replay: mix = dataset trains on one union, whose rows all weigh the same; set "
            "weighting = joint, or mix = step");
  }

  Dataset enlarge(Context& c, Dataset data) {
    if (mix == Mix::step || memory.empty()) return data;
    auto const rows = all_rows(c, memory, c.seed.generator("draw.replay", c.index));
    if (rows.size() == 0) return data;
    auto const stored = rows.stored.to(data.source->device);
    auto held = whole(resident(stored, rows.labels, "memory"), data.normalise);
    if (data.tasks.defined()) held.tasks = rows.task;
    auto const times = std::max<std::int64_t>(data.size() / held.size(), 1);
    auto const again = torch::arange(held.size(), torch::kInt64).repeat({times});
    return concatenate({data, held.select(again)});
  }

  Batch extend(Context& c, Batch b) {
    auto const a = share_of_fresh(c);
    if (c.shard == 0) drawn = mix == Mix::dataset || a == 1 ? Rows{} : choose(c);
    auto const m = drawn.size();
    if (m == 0) return b;
    if (weighting == Weighting::joint) {
      append_share(c, b, this, drawn);
    } else {
      auto const sum = weighting == Weighting::sum;
      b.parts.front().weight = (sum ? 1 : a) / static_cast<double>(c.fresh.size());
      append_share(c, b, this, drawn, (sum ? 1 : 1 - a) / static_cast<double>(m));
    }
    return b;
  }

  void after_step(Context& c) {
    if (insert == Insert::online && last_pass(c)) remember(c, memory, c.fresh, "memory.replay");
  }

  void end(Context& c, Experience const& experience) {
    if (insert == Insert::online) return;
    for_each_chunk(experience.train, c.arena.device(),
                   [&](Rows rows) { remember(c, memory, std::move(rows), "memory.replay"); });
  }

  void state(Archive& a) {
    a.part("memory", memory);
    a.part("sampler", sampler);
  }

  // State: written by the hooks.
  Rows drawn{};       ///< for the present step
  Sampler sampler{};  ///< where a cycle stands

 private:
  double share_of_fresh(Context const& c) const {
    if (weighting == Weighting::one_over_t) return 1 / static_cast<double>(c.index + 1);
    return weighting == Weighting::fixed ? new_weight : 0;
  }

  Rows choose(Context& c) {
    if (memory.empty()) return {};
    sampler.policy = draw;
    sampler.cycle.drop_last = drop_last;
    auto const n = batch > 0 ? batch : c.fresh.size();
    // Passes over the memory go on from step to step, so their order belongs to the run.
    auto const generator =
        draw == Draw::cycle ? c.run_generator("draw.replay") : c.generator("draw.replay");
    if (exclude_current) return draw_past(c, memory, n, generator, sampler);
    return replayed(c, sampler(memory, n, generator), generator);
  }
};

}  // namespace v0
}  // namespace pawl
