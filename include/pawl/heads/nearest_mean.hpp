#pragma once

#include <cstdint>
#include <limits>

#include "../core/archive.hpp"
#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// A classifier that predicts the class whose mean feature is closest (Mensink et al., TPAMI 2013).
/// Works on plain tensors; the order of the samples does not matter beyond rounding.
///   mu_c = sum of phi over class c / n_c;     score_c = -||phi - mu_c||^2, -inf for unseen classes
struct NearestMean {
  bool normalise = false;  ///< features to unit norm first; means are not normalised again
  bool cosine = false;     ///< unit features and unit means

  /// Counts features [n, d] of classes [n] int64 in.
  void add(Tensor const& features, Tensor const& classes) {
    require(features.dim() == 2 && classes.dim() == 1 && features.size(0) == classes.size(0),
            {"class means: got features ", features.sizes(), " and classes ", classes.sizes(),
             "; give features [n, d] and classes [n]"});
    if (features.size(0) == 0) return;
    check_width(features);
    require(classes.min().item<std::int64_t>() >= 0,
            "class means: got a negative class; classes are numbered from 0");
    torch::NoGradGuard no_grad;
    auto const phi = prepared(features);
    auto const y = classes.to(phi.device(), torch::kInt64);
    make_room(classes.max().item<std::int64_t>() + 1, phi);
    sums.index_add_(0, y, phi);
    counts.index_add_(0, y, torch::ones_like(y, phi.options()));
  }

  /// Scores [N, C] float64 of features [N, d]; C is the highest class seen + 1.
  Tensor scores(Tensor const& features) const {
    require(!empty(), "class means: there are none yet; add samples before asking for scores");
    check_width(features);
    torch::NoGradGuard no_grad;
    constexpr std::int64_t by_difference = 2;  // the product form would cancel far from the origin
    auto const distance = at::cdist(prepared(features), means(), 2.0, by_difference);
    return distance.square().neg().masked_fill(counts.eq(0),
                                               -std::numeric_limits<double>::infinity());
  }

  /// Means [C, d] float64; 0 for classes never seen.
  Tensor means() const {
    auto const mu = sums / counts.clamp_min(1).unsqueeze(1);
    return cosine ? unit(mu) : mu;
  }

  bool empty() const { return !sums.defined(); }
  void clear() { sums.reset(), counts.reset(); }

  void state(Archive& a) {
    a("sums", sums);
    a("counts", counts);
    if (a.loading() && sums.defined()) sums = sums.to(a.device), counts = counts.to(a.device);
  }

  // State: written by add.
  Tensor sums{};    ///< [C, d] float64 sums of (unit) features
  Tensor counts{};  ///< [C] float64

 private:
  static Tensor unit(Tensor const& v) { return v / v.norm(2, -1, true).clamp_min(1e-12); }

  void check_width(Tensor const& features) const {
    require(empty() || (features.dim() == 2 && features.size(1) == sums.size(1)),
            {"class means: got features ", features.sizes(), " but the means have ",
             empty() ? 0 : sums.size(1), " columns; give features [n, d] of one width"});
  }

  Tensor prepared(Tensor const& features) const {
    auto const phi = features.to(torch::kFloat64);
    return normalise || cosine ? unit(phi) : phi;
  }

  void make_room(std::int64_t classes, Tensor const& phi) {
    auto const held = empty() ? 0 : sums.size(0);
    if (classes <= held) return;
    auto const more = classes - held;
    auto const rows = torch::zeros({more, phi.size(1)}, phi.options());
    auto const zeros = torch::zeros({more}, phi.options());
    sums = held > 0 ? torch::cat({sums, rows}) : rows;
    counts = held > 0 ? torch::cat({counts, zeros}) : zeros;
  }
};

}  // namespace v0
}  // namespace pawl
