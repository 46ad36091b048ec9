#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../core/context.hpp"
#include "../memory/catalogue.hpp"
#include "../memory/draw.hpp"
#include "../memory/tasks.hpp"

namespace pawl {
inline namespace v0 {

/// Experience replay: train on a mixture of the present and a small sample of the past (Robins,
/// Connection Science 1995; Rolnick et al., NeurIPS 2019; Chaudhry et al., arXiv 2019).
///   L = 1/(B + m) sum over fresh and replayed rows of CE                (weighting = joint)
///   L = a mean_fresh CE + (1 - a) mean_replayed CE                      (fixed: a = new_weight;
///   one_over_t: a = 1/t)
/// With mix = dataset the memory joins the training set instead, repeated max(floor(N/M), 1) times
/// (naive rehearsal of Hsu et al., arXiv 2018).
struct Replay {
  enum class Insert { online, at_end };
  enum class Weighting { joint, fixed, one_over_t };
  enum class Mix { step, dataset };

  AnyMemory memory = Reservoir{};
  std::int64_t batch = 0;
  Insert insert = Insert::online;
  Sampler sampler = {};
  Weighting weighting = Weighting::joint;
  double new_weight = 0.5;
  bool exclude_current = false;
  Mix mix = Mix::step;

  static constexpr char const* name = "replay";
  static constexpr char const* about =
      "experience replay from a memory (Robins 1995; Rolnick et al., NeurIPS 2019; Chaudhry et "
      "al., "
      "arXiv 2019)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows of the past");
    o("batch", batch, at_least(0), "replayed rows per step; 0: as many as fresh ones");
    o("insert", insert, {"online", "at_end"},
      "write to memory after every step, or at the end of an experience");
    sampler.describe(o);
    o("weighting", weighting, {"joint", "fixed", "one_over_t"},
      "one mean over all rows; new_weight of fresh ones; or 1/t of fresh ones in experience t");
    o("new_weight", new_weight, between(0, 1),
      "of weighting = fixed: share of the fresh rows in the loss");
    o("exclude_current", exclude_current, "do not replay rows of the present experience");
    o("mix", mix, {"step", "dataset"},
      "add replayed rows to every step, or the whole memory to the training set (needs insert = "
      "at_end)");
  }

  void begin(Context&, Experience const&) {
    require(mix == Mix::step || insert == Insert::at_end,
            "replay: mix = dataset needs insert = at_end, since the training set is fixed for an "
            "experience");
  }

  Dataset enlarge(Context& c, Dataset data) {
    if (mix == Mix::step || memory.empty()) return data;
    auto const rows = without_own_tasks(c, memory.contents());
    auto held = whole(resident(rows.stored, rows.labels, "memory"), data.normalise);
    held.tasks = rows.task;
    auto const times = std::max<std::int64_t>(data.size() / held.size(), 1);
    auto const positions = torch::arange(held.size(), torch::kInt64).repeat({times});
    return concatenate({data, held.select(positions)});
  }

  Batch extend(Context& c, Batch b) {
    if (mix == Mix::dataset) return b;
    if (c.shard == 0) drawn = draw(c);
    auto const m = drawn.size();
    if (m == 0) return b;
    auto const slice = c.slice(m);
    auto weight = default_weight;
    if (weighting != Weighting::joint) {
      auto const a =
          weighting == Weighting::fixed ? new_weight : 1.0 / static_cast<double>(c.index + 1);
      b.parts.front().weight = a / static_cast<double>(c.fresh.size());
      weight = (1 - a) / static_cast<double>(m);
    }
    b.append(this, drawn.slice(slice.begin, slice.end), m, weight);
    return b;
  }

  void after_step(Context& c) {
    if (insert != Insert::online || c.pass != 0) return;
    memory.insert(with_tasks(c, c.fresh), c.run_generator("memory.replay"));
  }

  void end(Context& c, Experience const& experience) {
    if (insert == Insert::at_end) insert_all(c, experience.train);
  }

  void state(Archive& a) {
    a.part("memory", memory);
    a.part("sampler", sampler);
  }

  // State: written by the hooks.
  Rows drawn;  ///< of the present step

 private:
  Rows draw(Context& c) {
    if (memory.empty()) return {};
    auto const n = batch > 0 ? batch : c.fresh.size();
    auto const generator =
        sampler.policy == Draw::cycle ? c.run_generator("draw.replay") : c.generator("draw.replay");
    auto const eligible = exclude_current ? other_tasks(memory_task(c)) : Eligible{};
    return without_own_tasks(c, sampler(memory, n, generator, eligible));
  }

  void insert_all(Context& c, Dataset const& data) {
    constexpr std::int64_t chunk = 1000;
    for (std::int64_t begin = 0; begin < data.size(); begin += chunk) {
      auto const end = std::min(begin + chunk, data.size());
      auto const rows = data.read(torch::arange(begin, end, torch::kInt64), c.arena.device());
      memory.insert(with_tasks(c, rows), c.run_generator("memory.replay"));
    }
  }
};

}  // namespace v0
}  // namespace pawl
