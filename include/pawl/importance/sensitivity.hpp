#pragma once

#include <cstdint>

#include "per_sample.hpp"

namespace pawl {
inline namespace v0 {

/// Memory aware synapses: how strongly the squared norm of the output reacts to each weight
/// (Aljundi et al., ECCV 2018). Needs no labels.
///   Omega_i = 1/N sum_n | d ||z(x_n)||_2^2 / d th_i |
struct SensitivityOptions {
  enum class Reading {
    per_sample,  ///< the paper's
    batch        ///< |.| of batch-mean gradients, in which signs cancel: for conformance only
  };
  Reading reading = Reading::per_sample;
  bool mean_outputs = false;
  std::int64_t samples = 0;
  std::int64_t batch_size = 32;

  void describe(Options& o) {
    o("reading", reading, {"per_sample", "batch"}, "absolute value per sample, or of batch means");
    o("mean_outputs", mean_outputs, "mean instead of sum of the squared outputs");
    o("samples", samples, at_least(0), "samples of the importance, fixed by the seed; 0: all");
    o("importance_batch_size", batch_size, at_least(1),
      "rows per mean gradient, of reading = batch");
  }
};

/// The sensitivity of a network on a data set, [P] in the arena's dtype.
inline Tensor sensitivity(Probe const& probe, Dataset const& data,
                          SensitivityOptions const& options) {
  auto const positions = chosen_samples(data.size(), options.samples, probe.seed);
  auto const by_batch = options.reading == SensitivityOptions::Reading::batch;
  auto sum = torch::zeros_like(probe.arena.weights());
  std::int64_t count = 0;
  visit_samples(probe, data, positions, by_batch ? options.batch_size : 1, [&](Rows const& rows) {
    auto const z = probe.logits(rows);
    auto const open =
        torch::where(z.isinf(), torch::zeros_like(z), z);  // inactive outputs are -inf
    auto norm = open.square().sum() / static_cast<double>(rows.size());
    if (options.mean_outputs) norm = norm / static_cast<double>(z.size(1));
    add_each(probe.arena, probe.gradients(norm), sum, [](Tensor const& g) { return g.abs(); });
    ++count;
  });
  require(count > 0, "sensitivity: the data set has no samples");
  return sum.div_(static_cast<double>(count));
}

/// The same of a learner in training, at its present weights, over the outputs that are active in
/// its loss.
inline Tensor sensitivity(Context& c, Dataset const& data, SensitivityOptions const& options) {
  return sensitivity(probe_of(c, data), data, options);
}

}  // namespace v0
}  // namespace pawl
