#pragma once

#include <cstdint>
#include <utility>

#include "per_sample.hpp"

namespace pawl {
inline namespace v0 {

/// How the sensitivity is estimated.
struct SensitivityOptions {
  enum class Reading {
    per_sample,  ///< the paper's
    batch        ///< magnitude of batch-mean gradients, in which signs cancel: for conformance only
  };
  Reading reading = Reading::per_sample;  ///< magnitude per sample, or of batch means
  bool mean_outputs = false;              ///< mean over the outputs, not their sum
  std::int64_t samples = 0;               ///< rows, drawn from the seed; 0: all
  std::int64_t batch_size = 0;            ///< rows per mean gradient of `batch`; 0: as in training

  void describe(Options& o) {
    o("reading", reading, {"per_sample", "batch"}, "magnitude per sample, or of batch means");
    o("mean_outputs", mean_outputs, "mean instead of sum of the squared outputs");
    o("samples", samples, at_least(0), "samples of the importance, drawn from the seed; 0: all");
    o("importance_batch", batch_size, at_least(0),
      "rows per mean gradient, of reading = batch; 0: the batch size of training");
    o.only_if(reading == Reading::batch, "reading = batch");
  }
};

/// The sensitivity of a probed network on a data set, [P] in the type of the
/// parameters, but float32 at least.
inline Tensor sensitivity(Probe const& probe, Dataset const& data,
                          SensitivityOptions const& options) {
  auto const positions = probe.choose(data.size(), options.samples);
  auto const batch = options.batch_size > 0 ? options.batch_size : probe.batch_size;
  auto const unit = options.reading == SensitivityOptions::Reading::batch ? batch : 1;
  auto const count = (positions.numel() + unit - 1) / unit;
  require(count > 0, "sensitivity: the data set has no rows; give the experience some");
  auto const sum = per_sample_sum(
      probe, data, positions,
      {.of = PerSampleSum::Of::magnitude,
       .unit = unit,
       .cotangents = [&](Tensor const& z, Rows const& rows, std::int64_t) -> Cotangents {
         auto const hidden = z.isneginf();  // outputs that take no part
         auto cotangent = z.masked_fill(hidden, 0) * 2;
         if (options.mean_outputs) cotangent = cotangent / hidden.logical_not().sum(1, true);
         if (unit > 1) cotangent = cotangent / static_cast<double>(rows.size());
         return {1, [cotangent](std::int64_t) { return cotangent; }};
       }});
  return sum.div_(static_cast<double>(count)).to(PerSampleSum::wide_type(probe.arena.weights()));
}

/// How strongly the squared norm of a learner's outputs reacts to each weight: memory aware
/// synapses (Aljundi et al., ECCV 2018), averaged over samples, in eval mode, at the present
/// weights, over the outputs active in the loss:
///   Omega_i = 1/N sum_n | d ||z(x_n)||_2^2 / d th_i |
/// Needs no labels. Returns [P]. Batched where the network allows, as in `fisher`. Throws when
/// there are no samples.
inline Tensor sensitivity(Context& context, Dataset const& data, SensitivityOptions const& options,
                          PerSamplePath* path = nullptr) {
  auto probe = probe_of(context, data);
  probe.path = path;
  return sensitivity(probe, data, options);
}

/// The same without a learner, over all outputs unless `active` says otherwise.
inline Tensor sensitivity(Model const& model, Arena const& arena, Dataset const& data,
                          SensitivityOptions const& options = {}, Seed seed = {},
                          ActiveLogits active = {}, PerSamplePath* path = nullptr) {
  return sensitivity(
      {.model = model, .arena = arena, .seed = seed, .active = std::move(active), .path = path},
      data, options);
}

}  // namespace v0
}  // namespace pawl
