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
  Tensor first_pass{};  ///< [B, C] logits of the fresh rows, until they are inserted

  /// Draws for the step. `n` = 0: as many as fresh rows.
  void draw(Context& c, AnyMemory& memory, std::int64_t n) {
    if (room.defined()) depends_on_place(room.const_data_ptr());
    drawn = draw_rows(c, memory, n, "draw.der");
    require(drawn.size() == 0 || drawn.logits.defined(),
            "der: the memory gave rows without logits; a memory of your own must keep the column "
            "`logits` of the rows it is given");
  }

  /// Logits [n, C] of the shard's share of the draw, in the pass of the fresh rows: `owner`
  /// appended it first. Undefined where the share is empty.
  Tensor joint(Context const& c, void const* owner) const {
    if (c.slice(drawn.size()).size() == 0) return {};
    auto const& part = *c.batch.part(owner);
    return c.logits.narrow(0, part.begin, part.size);
  }

  /// The same in a pass of its own.
  Tensor apart(Context const& c) const { return forward_apart(c, share(c, drawn), "model.der"); }

  /// The shard's part of the mean over rows and logits of (z - stored)^2. Stored logits are NaN
  /// where the head was narrower then: neither they nor the columns added since count.
  Tensor error(Context const& c, Tensor const& z) const {
    if (!z.defined()) return torch::zeros({}, c.logits.options());
    auto const width = std::min(drawn.logits.size(1), z.size(1));
    auto const compared = drawn.logits.narrow(1, 0, width).isnan().logical_not().sum();
    auto const now = z.narrow(1, 0, width);
    auto const then = share(c, drawn).logits.narrow(1, 0, width);
    auto const difference = now - torch::where(then.isnan(), now.detach(), then);
    return difference.square().sum() / compared.clamp_min(1);
  }

  void after_step(Context& c, AnyMemory& memory) {
    if (c.pass == 0) {
      first_pass = c.fresh_logits();
      if (!last_pass(c)) keep_first_pass();
    }
    if (!last_pass(c)) return;
    auto rows = c.fresh;
    rows.logits = first_pass;
    remember(c, memory, std::move(rows), "memory.der");
    first_pass.reset();
  }

  void state(Archive& a) { a("first_pass", first_pass); }

 private:
  /// In the same memory in every step, so that recorded passes find what other ones left.
  void keep_first_pass() {
    auto const n = first_pass.size(0), width = first_pass.size(1);
    if (!room.defined() || !room.options().type_equal(first_pass.options()) ||
        room.device() != first_pass.device() || room.size(0) < n || room.size(1) != width) {
      room = torch::empty_like(first_pass);
    }
    auto kept = room.narrow(0, 0, n);
    if (!planning()) kept.copy_(first_pass);
    first_pass = kept;
  }

  Tensor room{};
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
  static constexpr bool plans_ahead = true;

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows and their logits");
    o("batch", batch, at_least(0), "replayed rows per step; 0: as many as fresh ones");
    o("alpha", alpha, at_least(0), "weight of the error in stored logits; 0 is naive");
    o("forward", forward, {"joint", "separate"},
      "replayed rows in the forward pass of the fresh ones, or in one of their own");
  }

  bool capturable() const { return memory.planned(); }

  Batch extend(Context& c, Batch b) {
    if (alpha == 0) return b;
    if (c.shard == 0) dark.draw(c, memory, batch);
    if (forward == Forward::joint) append_share(c, b, this, dark.drawn, 0);
    return b;
  }

  Tensor penalty(Context& c) {
    if (alpha == 0 || dark.drawn.size() == 0) return {};
    auto const z = forward == Forward::joint ? dark.joint(c, this) : dark.apart(c);
    return dark.error(c, z) * alpha;
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
  static constexpr bool plans_ahead = true;

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows and their logits");
    o("batch", batch, at_least(0), "rows of each draw; 0: as many as fresh ones");
    o("alpha", alpha, at_least(0), "weight of the error in stored logits");
    o("beta", beta, at_least(0), "weight of the cross-entropy of replayed rows");
    o("draws", draws, {"two", "one"}, "an independent draw for the labels, or the same rows");
    o("forward", forward, {"joint", "separate"},
      "replayed rows in the forward pass of the fresh ones, or each draw in one of its own");
  }

  bool capturable() const { return memory.planned(); }

  Batch extend(Context& c, Batch b) {
    if (c.shard == 0) draw(c);
    if (forward == Forward::separate) {
      auto const& rows = supervised();
      if (c.shard == 0 && beta > 0 && rows.size() > 0) c.labels_apart.push_back(rows.labels);
      return b;
    }
    append_share(c, b, this, dark.drawn, shared() ? row_weight(dark.drawn) : 0);
    append_share(c, b, this, labelled, row_weight(labelled));
    return b;
  }

  Tensor loss(Context& c) {
    auto const fresh = c.weighted_cross_entropy();
    if (forward == Forward::joint) return fresh;
    // In the order of the formula, because every pass moves the statistics of BatchNorm.
    apart = dark.apart(c);
    auto const& rows = supervised();
    auto const z = shared() ? apart : forward_apart(c, share(c, rows), "model.derpp.labels");
    return z.defined() ? fresh + cross_entropy(c, z, rows) : fresh;
  }

  Tensor penalty(Context& c) {
    if (alpha == 0 || dark.drawn.size() == 0) return {};
    auto const z = forward == Forward::joint ? dark.joint(c, this) : std::exchange(apart, {});
    return dark.error(c, z) * alpha;
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
  Tensor apart{};   ///< [n, C] logits of this shard's dark rows, of forward = separate

 private:
  bool shared() const { return draws == Draws::one && beta > 0; }
  Rows const& supervised() const { return shared() ? dark.drawn : labelled; }

  /// The first draw has the sub-stream of `Der`, and the second one of its own.
  void draw(Context& c) {
    dark.drawn = labelled = Rows{};
    if (alpha > 0 || shared()) dark.draw(c, memory, batch);
    if (beta > 0 && !shared()) labelled = draw_rows(c, memory, batch, "draw.derpp.labels");
  }

  double row_weight(Rows const& rows) const { return beta / static_cast<double>(rows.size()); }

  /// The shard's part of the labelled term, from the logits of its share of `rows`.
  Tensor cross_entropy(Context const& c, Tensor const& logits, Rows const& rows) const {
    auto const own = share(c, rows);
    c.check_labels(host_column(own.labels.contiguous()), logits.size(1));
    auto const z = c.active_logits(logits, c.step_labels, own.task, 0);
    return at::cross_entropy_loss(z, own.y, {}, at::Reduction::Sum) * row_weight(rows);
  }
};

}  // namespace v0
}  // namespace pawl
