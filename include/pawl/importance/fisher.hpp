#pragma once

#include <cstdint>
#include <utility>

#include "per_sample.hpp"

namespace pawl {
inline namespace v0 {

/// Which labels enter the diagonal Fisher information.
enum class FisherLabels {
  exact,      ///< all of them, weighted by p(y|x)
  sampled,    ///< one y ~ p(y|x) per sample; unbiased for exact
  empirical,  ///< the label of the data set
  predicted,  ///< the most probable label
  batch       ///< square of the batch-mean gradient of the true labels: not a Fisher diagonal, for
              ///< conformance only
};

/// Diagonal Fisher information (Kirkpatrick et al., PNAS 2017), averaged over samples, module in
/// eval mode:
///   F_i = 1/N sum_n E_y [ (d log p(y|x_n) / d th_i)^2 ]
struct FisherOptions {
  FisherLabels labels = FisherLabels::exact;
  std::int64_t samples = 0;
  std::int64_t batch_size = 32;
  bool divide_by_n_minus_1 = false;

  void describe(Options& o) {
    o("labels", labels, {"exact", "sampled", "empirical", "predicted", "batch"},
      "labels of the Fisher: all by p(y|x), one drawn, the true one, the most probable one; batch "
      "squares "
      "batch-mean gradients");
    o("samples", samples, at_least(0), "samples of the Fisher, fixed by the seed; 0: all");
    o("fisher_batch_size", batch_size, at_least(1), "rows per mean gradient, of labels = batch");
    o("divide_by_n_minus_1", divide_by_n_minus_1, "divide by N - 1, as one published code does");
  }
};

/// The Fisher of a network on a data set, [P] in the arena's dtype.
inline Tensor fisher(Probe const& probe, Dataset const& data, FisherOptions const& options) {
  auto const positions = chosen_samples(data.size(), options.samples, probe.seed);
  auto const by_batch = options.labels == FisherLabels::batch;
  auto sum = torch::zeros_like(probe.arena.weights());
  std::int64_t count = 0;
  visit_samples(probe, data, positions, by_batch ? options.batch_size : 1, [&](Rows const& rows) {
    auto const log_p = at::log_softmax(probe.logits(rows), 1);
    auto const square = [](Tensor const& g) { return g.square(); };
    auto const n = count++;
    if (by_batch) {
      auto const loss = at::nll_loss(log_p, rows.y);
      return add_each(probe.arena, probe.gradients(loss), sum, square);
    }
    if (options.labels != FisherLabels::exact) {
      auto label = rows.labels[0].item<std::int64_t>();
      if (options.labels == FisherLabels::predicted) label = log_p.argmax(1).item<std::int64_t>();
      if (options.labels == FisherLabels::sampled) {
        auto u = probe.seed.generator("aux.labels", n).uniform();
        auto const p = log_p.detach().exp()[0].to(torch::kCPU, torch::kFloat64).contiguous();
        auto const* each = p.data_ptr<double>();
        for (label = 0; label + 1 < p.numel() && u >= each[label]; ++label) u -= each[label];
      }
      return add_each(probe.arena, probe.gradients(log_p[0][label]), sum, square);
    }
    auto const classes = log_p.size(1);
    auto const p = log_p.detach().exp()[0].to(torch::kCPU, torch::kFloat64).contiguous();
    for (std::int64_t y = 0; y < classes; ++y) {
      auto const weight = p.data_ptr<double>()[y];
      if (weight == 0) continue;  // an inactive output
      add_each(probe.arena, probe.gradients(log_p[0][y], y + 1 < classes), sum,
               [&](Tensor const& g) { return g.square().mul_(weight); });
    }
  });
  require(count > (options.divide_by_n_minus_1 ? 1 : 0),
          "fisher: the data set has too few samples");
  return sum.div_(static_cast<double>(count - (options.divide_by_n_minus_1 ? 1 : 0)));
}

/// The same of a learner in training, at its present weights, over the outputs that are active in
/// its loss.
inline Tensor fisher(Context& c, Dataset const& data, FisherOptions const& options) {
  return fisher(probe_of(c, data), data, options);
}

}  // namespace v0
}  // namespace pawl
