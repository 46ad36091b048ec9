#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "per_sample.hpp"

namespace pawl {
inline namespace v0 {

/// Which labels enter the diagonal Fisher information.
enum class FisherLabels {
  automatic,  ///< exact, with more than 20 outputs sampled
  exact,      ///< all of them, weighted by p(y|x)
  sampled,    ///< one y ~ p(y|x) per sample: unbiased for exact, and cheaper with many classes
  empirical,  ///< the label of the data set
  predicted,  ///< the most probable label
  batch  ///< square of batch-mean gradients at the true labels: no Fisher at all, for conformance
         ///< only
};

/// How the Fisher information is estimated.
struct FisherOptions {
  FisherLabels labels = FisherLabels::automatic;  ///< which labels y enter
  std::int64_t samples = 0;                       ///< rows, drawn from the seed; 0: all
  std::int64_t batch_size = 0;       ///< rows per mean gradient of `batch`; 0: as in training
  bool divide_by_n_minus_1 = false;  ///< N - 1 in the place of N

  void describe(Options& o) {
    o("labels", labels, {"automatic", "exact", "sampled", "empirical", "predicted", "batch"},
      "labels of the Fisher: all by p(y|x), one drawn from it, the true one, the most probable "
      "one; automatic: exact, with more than 20 outputs sampled; batch squares batch-mean "
      "gradients");
    o("samples", samples, at_least(0), "samples of the Fisher, drawn from the seed; 0: all");
    o("fisher_batch", batch_size, at_least(0),
      "rows per mean gradient, of labels = batch; 0: the batch size of training");
    o.only_if(labels == FisherLabels::batch, "labels = batch");
    o("divide_by_n_minus_1", divide_by_n_minus_1, "divide by N - 1, as one published code does");
  }
};

/// sqrt(w_y) d log p(y|x) / dz = sqrt(w_y) (e_y - p) for each label y in question; in double, for
/// p_y close to 1.
inline Cotangents fisher_cotangents(Probe const& probe, FisherLabels labels, Tensor const& z,
                                    Rows const& rows, std::int64_t first) {
  auto const p = at::softmax(z, 1, torch::kFloat64);
  if (labels == FisherLabels::automatic) {
    labels = z.size(1) <= 20 ? FisherLabels::exact : FisherLabels::sampled;
  }
  if (labels == FisherLabels::exact) {
    auto const open = p.amax(0).gt(0).to(torch::kCPU);  // the columns that take part
    std::vector<std::int64_t> columns;
    for (std::int64_t y = 0; y < p.size(1); ++y) {
      if (open.data_ptr<bool>()[y]) columns.push_back(y);
    }
    auto const count = static_cast<std::int64_t>(columns.size());
    return {count, [p, columns, type = z.scalar_type()](std::int64_t k) {
              auto const y = columns[static_cast<std::size_t>(k)];
              auto const root = p.narrow(1, y, 1).sqrt();
              auto cotangent = p * -root;
              cotangent.narrow(1, y, 1).add_(root);
              return cotangent.to(type);
            }};
  }
  auto label = rows.y;
  if (labels == FisherLabels::predicted) label = p.argmax(1);
  if (labels == FisherLabels::sampled) {
    auto const host = p.to(torch::kCPU).contiguous();
    auto drawn = torch::zeros({host.size(0)}, torch::kInt64);
    auto const generator = probe.generator("aux.labels");
    for (std::int64_t i = 0; i < host.size(0); ++i) {
      auto const* each = host.data_ptr<double>() + i * host.size(1);
      auto u = generator.fork(first + i).uniform();
      std::int64_t
          y = 0,
          last = 0;  // the last label that can be drawn, should rounding leave u above the sum
      for (; y < host.size(1); ++y) {
        if (each[y] > 0) last = y;
        if (u < each[y]) break;
        u -= each[y];
      }
      drawn.data_ptr<std::int64_t>()[i] = y < host.size(1) ? y : last;
    }
    label = drawn.to(p.device());
  }
  label = label.unsqueeze(1);
  auto const given = labels == FisherLabels::empirical || labels == FisherLabels::batch;
  if (given && rows.labels.numel() > 0) {  // on the host, where nobody waits for the device
    auto const last = rows.labels.max().item<std::int64_t>();
    require(last < z.size(1), {"fisher: label ", last, " is not among the ", z.size(1),
                               " outputs that take part; see labels and active"});
  }
  require(!z.gather(1, label).isneginf().any().template item<bool>(),
          "fisher: a row has a label that is not among the active outputs; see labels and active");
  auto cotangent = -p;
  cotangent.scatter_add_(1, label, torch::ones_like(label, p.options()));
  if (labels == FisherLabels::batch) cotangent.div_(static_cast<double>(rows.size()));
  return {1, [cotangent, type = z.scalar_type()](std::int64_t) { return cotangent.to(type); }};
}

/// The Fisher of a probed network on a data set, [P] in the type of the
/// parameters, but float32 at least.
inline Tensor fisher(Probe const& probe, Dataset const& data, FisherOptions const& options) {
  auto const positions = probe.choose(data.size(), options.samples);
  auto const batch = options.batch_size > 0 ? options.batch_size : probe.batch_size;
  auto const unit = options.labels == FisherLabels::batch ? batch : 1;
  auto const labels = unit == 1 && options.labels == FisherLabels::batch
                          ? FisherLabels::empirical  // means over one row
                          : options.labels;
  auto const count = (positions.numel() + unit - 1) / unit;
  auto const lost = options.divide_by_n_minus_1 ? 1 : 0;
  require(count > lost, {"fisher: ", count, " samples are too few; give the experience more rows"});
  auto const sum =
      per_sample_sum(probe, data, positions,
                     {.of = PerSampleSum::Of::square,
                      .unit = unit,
                      .cotangents = [&](Tensor const& z, Rows const& rows, std::int64_t first) {
                        return fisher_cotangents(probe, labels, z, rows, first);
                      }});
  return sum.div_(static_cast<double>(count - lost))
      .to(PerSampleSum::wide_type(probe.arena.weights()));
}

/// How much the predictions of a learner depend on each weight: the diagonal Fisher information
/// (Kirkpatrick et al., PNAS 2017), averaged over samples, in eval mode, at the present weights,
/// over the outputs active in the loss:
///   F_i = 1/N sum_n E_y [ (d log p(y|x_n) / d th_i)^2 ]
/// Returns [P]. Networks of `Linear` (one row per sample), `Conv1d` and `Conv2d`, `BatchNorm`,
/// `LayerNorm` and `GroupNorm` take about one backward pass per label in question and batch; all
/// others go sample by sample. `path` tells which. Throws when there are no samples.
inline Tensor fisher(Context& context, Dataset const& data, FisherOptions const& options,
                     PerSamplePath* path = nullptr) {
  auto probe = probe_of(context, data);
  probe.path = path;
  return fisher(probe, data, options);
}

/// The same without a learner, over all outputs unless `active` says otherwise.
inline Tensor fisher(Model const& model, Arena const& arena, Dataset const& data,
                     FisherOptions const& options = {}, Seed seed = {}, ActiveLogits active = {},
                     PerSamplePath* path = nullptr) {
  return fisher(
      {.model = model, .arena = arena, .seed = seed, .active = std::move(active), .path = path},
      data, options);
}

}  // namespace v0
}  // namespace pawl
