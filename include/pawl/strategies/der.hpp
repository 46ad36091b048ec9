#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "../memory/catalogue.hpp"
#include "../memory/rehearsal.hpp"

namespace pawl {
inline namespace v0 {

/// What DER and DER++ share: rows that are kept with the logits which the training forward gave
/// them, and the error of the present logits against those.
struct DarkKnowledge {
  // State: written by the calls.
  Rows drawn{};         ///< for the present step
  Tensor compared{};    ///< [] number of stored logits in the draw
  Tensor first_pass{};  ///< [B, C] logits of the fresh rows, until they are inserted

  /// Draws for the step. `n` = 0: as many as fresh rows.
  void draw(Context& c, AnyMemory& memory, std::int64_t n) {
    drawn = draw_rows(c, memory, n, "draw.der");
    if (drawn.size() == 0) return;
    require(drawn.logits.defined(),
            "der: the memory gave rows without logits; a memory of your own must keep the column "
            "`logits` of the rows it is given");
    compared = drawn.logits.isnan().logical_not().sum().clamp_min(1);
  }

  /// The shard's part of the mean over rows and logits of (z - stored)^2; z [n, C]. Stored logits
  /// are NaN where the head was narrower then: neither they nor the columns added since count.
  Tensor error(Tensor const& z, Tensor const& stored) const {
    auto const width = std::min(stored.size(1), z.size(1));
    auto const now = z.narrow(1, 0, width);
    auto const then = stored.narrow(1, 0, width);
    return (now - torch::where(then.isnan(), now.detach(), then)).square().sum() / compared;
  }

  /// The error of the rows that the owner appended first, or of the same rows in a pass of their
  /// own. Undefined when none were drawn.
  Tensor penalty(Context& c, void const* owner, Forward forward) const {
    if (drawn.size() == 0) return {};
    if (forward == Forward::joint) {
      auto const* part = c.batch.part(owner);
      if (part == nullptr) return {};  // an empty slice
      return error(c.logits.narrow(0, part->begin, part->size), part->rows.logits);
    }
    auto const slice = c.slice(drawn.size());
    auto const rows = drawn.slice(slice.begin, slice.end);
    auto const z = forward_apart(c, rows, "model.der");
    return z.defined() ? error(z, rows.logits) : Tensor{};
  }

  void after_step(Context& c, AnyMemory& memory) {
    if (c.pass == 0) first_pass = c.fresh_logits().clone();
    if (!last_pass(c)) return;
    auto rows = c.fresh;
    rows.logits = first_pass;
    remember(c, memory, std::move(rows), "memory.der");
    first_pass.reset();
  }

  void state(Archive& a) { a("first_pass", first_pass); }
};

/// Dark experience replay: replays the network's own past answers (Buzzega et al., NeurIPS 2020).
///   L = CE(fresh) + alpha MSE(z(x'), z_stored)
/// x' is a draw from a reservoir over the whole stream; the MSE is a mean over rows and logits.
/// Stored logits are those of the training forward that saw the row, and never change. With a
/// growing head only the logits that a row was stored with are compared.
///
/// State: the memory and 4 C bytes a row. forward = joint puts the rows into the step's forward
/// pass with weight 0; with BatchNorm the published form is forward = separate.
struct Der {
  AnyMemory memory = Reservoir{};    ///< what keeps rows and their logits
  std::int64_t batch = 0;            ///< rows of a draw, >= 0; 0: as many as fresh ones
  double alpha = 0.5;                ///< weight of the error, >= 0; 0 is naive training
  Forward forward = Forward::joint;  ///< joint | separate

  static constexpr char const* name = "der";
  static constexpr char const* about = "dark experience replay, DER (Buzzega et al., NeurIPS 2020)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows and their logits");
    o("batch", batch, at_least(0), "replayed rows per step; 0: as many as fresh ones");
    o("alpha", alpha, at_least(0), "weight of the error in stored logits; 0 is naive");
    o("forward", forward, {"joint", "separate"},
      "replayed rows in the forward pass of the fresh ones, or in one of their own");
  }

  Batch extend(Context& c, Batch b) {
    if (alpha == 0) return b;
    if (c.shard == 0) dark.draw(c, memory, batch);
    if (forward == Forward::joint && dark.drawn.size() > 0) {
      b.parts.front().weight = 1 / static_cast<double>(c.fresh.size());
      append_share(c, b, this, dark.drawn, 0);
    }
    return b;
  }

  Tensor penalty(Context& c) {
    if (alpha == 0) return {};
    auto const value = dark.penalty(c, this, forward);
    return value.defined() ? value * alpha : value;
  }

  void after_step(Context& c) { dark.after_step(c, memory); }

  void state(Archive& a) {
    a.part("memory", memory);
    a.part("dark", dark);
  }

  // State: written by the hooks.
  DarkKnowledge dark{};
};

/// DER with labels (Buzzega et al., NeurIPS 2020):
///   L = CE(fresh) + alpha MSE(z(x'), z_stored) + beta CE(z(x''), y'')
/// x', x'' are two independent draws, or one (draws = one). The last term is part of the supervised
/// loss, of which this strategy is the owner. beta = 0 is `Der`, bit for bit.
struct DerPlusPlus {
  enum class Draws { two, one };

  AnyMemory memory = Reservoir{};    ///< what keeps rows and their logits
  std::int64_t batch = 0;            ///< rows of each draw, >= 0; 0: as many as fresh ones
  double alpha = 0.5;                ///< weight of the error in stored logits, >= 0
  double beta = 0.5;                 ///< weight of the CE of replayed rows, >= 0
  Draws draws = Draws::two;          ///< a draw for the logits and one for the labels, or one
  Forward forward = Forward::joint;  ///< joint | separate (one more pass per draw)

  static constexpr char const* name = "derpp";
  static constexpr char const* about =
      "dark experience replay with labels, DER++ (Buzzega et al., NeurIPS 2020)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows and their logits");
    o("batch", batch, at_least(0), "rows of each draw; 0: as many as fresh ones");
    o("alpha", alpha, at_least(0), "weight of the error in stored logits");
    o("beta", beta, at_least(0), "weight of the cross-entropy of replayed rows");
    o("draws", draws, {"two", "one"}, "an independent draw for the labels, or the same rows");
    o("forward", forward, {"joint", "separate"},
      "replayed rows in the forward pass of the fresh ones, or each draw in one of its own");
  }

  Batch extend(Context& c, Batch b) {
    if (c.shard == 0) draw(c);
    if (forward == Forward::separate) return b;
    if (dark.drawn.size() + labelled.size() > 0) {
      b.parts.front().weight = 1 / static_cast<double>(c.fresh.size());
    }
    append_share(c, b, this, dark.drawn, shared() ? row_weight(dark.drawn) : 0);
    append_share(c, b, this, labelled, row_weight(labelled));
    return b;
  }

  Tensor loss(Context& c) {
    auto const fresh = c.weighted_cross_entropy();
    auto const& rows = shared() ? dark.drawn : labelled;
    if (forward == Forward::joint || rows.size() == 0) return fresh;
    apart = forward_apart(c, share(c, rows), "model.derpp.labels");
    return apart.defined() ? fresh + cross_entropy(c, share(c, rows)) : fresh;
  }

  Tensor penalty(Context& c) {
    if (alpha == 0) return {};
    auto const reuse = forward == Forward::separate && shared() && apart.defined();
    auto const value = reuse
                           ? dark.error(std::exchange(apart, Tensor{}), share(c, dark.drawn).logits)
                           : dark.penalty(c, this, forward);
    return value.defined() ? value * alpha : value;
  }

  void after_step(Context& c) {
    apart.reset();
    dark.after_step(c, memory);
  }

  void state(Archive& a) {
    a.part("memory", memory);
    a.part("dark", dark);
  }

  // State: written by the hooks.
  DarkKnowledge dark{};
  Rows labelled{};  ///< drawn for the labels, in this step
  Tensor apart{};   ///< [n, C] logits of this shard's labelled rows, of forward = separate

 private:
  bool shared() const { return draws == Draws::one && beta > 0; }

  /// The first draw has the sub-stream of `Der`, and the second one of its own.
  void draw(Context& c) {
    dark.drawn = labelled = Rows{};
    if (alpha > 0 || shared()) dark.draw(c, memory, batch);
    if (beta > 0 && !shared()) labelled = draw_rows(c, memory, batch, "draw.derpp.labels");
  }

  double row_weight(Rows const& rows) const { return beta / static_cast<double>(rows.size()); }

  static Rows share(Context const& c, Rows const& rows) {
    auto const slice = c.slice(rows.size());
    return rows.slice(slice.begin, slice.end);
  }

  Tensor cross_entropy(Context const& c, Rows const& rows) const {
    auto const z = c.active_logits(apart, rows.labels, rows.task, 0);
    auto const m = shared() ? dark.drawn.size() : labelled.size();
    return at::cross_entropy_loss(z, rows.y, {}, at::Reduction::Sum) *
           (beta / static_cast<double>(m));
  }
};

}  // namespace v0
}  // namespace pawl
