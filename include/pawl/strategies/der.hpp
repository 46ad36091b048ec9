#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../core/context.hpp"
#include "../memory/catalogue.hpp"
#include "../memory/draw.hpp"
#include "../memory/tasks.hpp"

namespace pawl {
inline namespace v0 {

/// Sum over the rows of `part` in this shard of the squared differences between present and stored
/// logits, divided by `compared`, the number of logits compared in the whole step. Stored logits
/// that are NaN (a head that was narrower then) are left out, as are present ones without a stored
/// twin.
inline Tensor stored_logits_error(Context const& c, Part const& part, Tensor const& compared) {
  auto const& stored = part.rows.logits;
  auto const columns = std::min(stored.size(1), c.logits.size(1));
  auto const z = c.logits.narrow(0, part.begin, part.size).narrow(1, 0, columns);
  auto const target = stored.narrow(1, 0, columns);
  auto const known = target.isnan().logical_not();
  auto const difference = z - torch::where(known, target, z.detach());
  return difference.square().sum() / compared;
}

/// Dark experience replay: replay the network's own past logits (Buzzega et al., NeurIPS 2020).
///   L = CE(fresh) + alpha MSE(z(x'), z_stored) + beta CE(z(x''), y'')
/// x', x'' are two independent draws from a reservoir over the whole stream. Rows are stored with
/// the logits of the training forward that saw them. The MSE is a mean over rows and logits. One
/// joint forward serves all rows: exact without BatchNorm; with it, statistics mix (the published
/// code uses separate forwards).
template <bool labels>
struct DarkReplay {
  AnyMemory memory = Reservoir{};
  std::int64_t batch = 0;
  double alpha = 0.5;
  double beta = labels ? 0.5 : 0.0;
  enum class Draws { two, one } draws = Draws::two;

  static constexpr char const* name = labels ? "derpp" : "der";
  static constexpr char const* about =
      labels ? "dark experience replay with labels, DER++ (Buzzega et al., NeurIPS 2020)"
             : "dark experience replay, DER (Buzzega et al., NeurIPS 2020)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows and their logits");
    o("batch", batch, at_least(0), "rows per draw; 0: as many as fresh ones");
    o("alpha", alpha, at_least(0), "weight of the error in stored logits");
    if (!labels) return;
    o("beta", beta, at_least(0), "weight of the cross-entropy of the second draw");
    o("draws", draws, {"two", "one"}, "an independent draw for the labels, or the same rows");
  }

  Batch extend(Context& c, Batch b) {
    if (c.shard == 0) draw(c);
    auto const shared = draws == Draws::one && beta > 0;
    if (dark.size() > 0) append(c, b, dark, shared ? beta : 0.0);
    if (labelled.size() > 0) append(c, b, labelled, beta);
    return b;
  }

  Tensor penalty(Context& c) {
    auto const* part = alpha > 0 ? c.batch.part(this) : nullptr;
    if (part == nullptr || !part->rows.logits.defined()) return {};  // only rows for the labels
    return stored_logits_error(c, *part, compared) * alpha;
  }

  void after_step(Context& c) {
    if (c.pass != 0) return;
    auto rows = with_tasks(c, c.fresh);
    rows.logits = c.fresh_logits();
    memory.insert(rows, c.run_generator("memory.der"));
  }

  void state(Archive& a) { a.part("memory", memory); }

  // State: written by the hooks.
  Rows dark;        ///< drawn for the stored logits, in this step
  Rows labelled;    ///< drawn for the labels, in this step
  Tensor compared;  ///< [] number of stored logits that are compared in this step

 private:
  void draw(Context& c) {
    dark = labelled = Rows{};
    if (memory.empty()) return;
    auto const n = batch > 0 ? batch : c.fresh.size();
    auto const one = draws == Draws::one && beta > 0;
    // The sub-stream of the first draw is the same for DER and DER++, so that beta = 0 is DER.
    if (alpha > 0 || one) {
      dark = without_own_tasks(c, memory.draw(n, c.generator("draw.der")));
      compared = dark.logits.isnan().logical_not().sum().clamp_min(1);
    }
    if (beta > 0 && !one) {
      labelled = without_own_tasks(c, memory.draw(n, c.generator("draw.derpp.labels")));
      labelled.logits.reset();
    }
  }

  /// The rows' share of this shard; `total` is the weight of all of them in the supervised loss.
  void append(Context& c, Batch& b, Rows const& rows, double total) {
    auto const n = rows.size();
    auto const slice = c.slice(n);
    b.parts.front().weight = 1.0 / static_cast<double>(c.fresh.size());
    b.append(this, rows.slice(slice.begin, slice.end), n, total / static_cast<double>(n));
  }
};
using Der = DarkReplay<false>;
using DerPlusPlus = DarkReplay<true>;

}  // namespace v0
}  // namespace pawl
