#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// Accuracies on all test sets at one moment, usually after an experience.
struct AccuracyRow {
  std::vector<double> accuracy;      ///< [T] fractions in [0, 1]; NaN: not evaluated
  std::vector<std::int64_t> size{};  ///< [T] test samples per experience; may be empty
  std::string prediction{};          ///< class, task_masked or task_head; empty: not stated
  std::string active{};  ///< classes that competed: seen, all or task; empty: not stated
};

/// Mean over the experiences of a row, each with the same weight; NaN when an entry is missing.
inline double mean_accuracy(AccuracyRow const& row) {
  double sum = 0;
  for (auto const a : row.accuracy) sum += a;
  return sum / static_cast<double>(row.accuracy.size());
}

/// Accuracy over all test samples of a row together; NaN without sizes or when an entry is missing.
inline double pooled_accuracy(AccuracyRow const& row) {
  double right = 0, samples = 0;
  for (std::size_t j = 0; j < row.size.size(); ++j) {
    right += row.accuracy[j] * static_cast<double>(row.size[j]);
    samples += static_cast<double>(row.size[j]);
  }
  return right / samples;
}

/// What a learner knew when: R_ij is the accuracy on the test set of experience j after training on
/// experience i. All summaries of the literature come from it, under one name each.
///
/// With T rows appended every metric is that of the stream of the first T experiences, so a matrix
/// can be read while it grows; further columns are used by nothing. Entries may be missing (NaN, or
/// a row that is too short): extrema run over what exists, if that is more than the end; a mean
/// that needs a missing entry is undefined. Undefined metrics are NaN (and nullopt in `metrics()`),
/// never 0: also those that need two experiences when T = 1. Means weigh experiences equally unless
/// the name ends in
/// `_by_sample`.
class AccuracyMatrix {
 public:
  /// Appends the row after the next experience. Throws on values outside [0, 1].
  void append(AccuracyRow row);
  void append(std::vector<double> accuracy) {
    append(AccuracyRow{.accuracy = std::move(accuracy)});
  }

  /// Sets b_j, the accuracy of the untrained model (a fresh initialisation), for `fwt`.
  void untrained(AccuracyRow const& row) { untrained_ = row.accuracy; }
  void untrained(std::vector<double> accuracy) { untrained_ = std::move(accuracy); }
  /// Sets a*_k, the accuracy on k of a model trained jointly on 0..k, for `intransigence`.
  void joint(std::vector<double> accuracy) { joint_ = std::move(accuracy); }

  c10::ArrayRef<AccuracyRow> rows() const { return rows_; }
  std::int64_t size() const { return static_cast<std::int64_t>(rows_.size()); }  ///< T
  double at(std::int64_t i, std::int64_t j) const;  ///< R_ij; NaN where missing

  /// ACC (Lopez-Paz and Ranzato, NeurIPS 2017): (1/T) sum_j R_{T-1,j}.
  double final_accuracy() const { return accuracy_after(size() - 1); }
  double average() const { return final_accuracy(); }
  /// A_i = (1/(i+1)) sum_{j<=i} R_ij.
  double accuracy_after(std::int64_t i) const;
  /// Rebuffi et al., CVPR 2017: (1/T) sum_i A_i.
  double average_incremental() const { return incremental(0, false); }
  double average_incremental_from_second() const { return incremental(1, false); }
  double final_accuracy_by_sample() const { return pooled_after(size() - 1); }
  double average_incremental_by_sample() const { return incremental(0, true); }
  /// Riemer et al., ICLR 2019: (1/T) sum_j R_jj.
  double learning_accuracy() const;
  /// Diaz-Rodriguez et al., 2018: sum_{i>=j} R_ij / (T(T+1)/2).
  double matrix_mean() const;

  /// Chaudhry et al., ECCV 2018: (1/(T-1)) sum_{j<T-1} (max_{i<T-1} R_ij - R_{T-1,j}).
  double forgetting() const { return forgetting_at(size() - 1); }
  /// The same after experience k = 1 .. T-1; NaN for other k.
  double forgetting_at(std::int64_t k) const { return drop(k, Best::before); }
  std::vector<double> forgetting_at_all() const;  ///< for k = 1 .. T-1
  /// The maximum runs over j <= i < T-1 only, from the moment j was learned.
  double forgetting_max_from_j() const { return drop(size() - 1, Best::from_j); }
  /// (1/(T-1)) sum_{j<T-1} (R_jj - R_{T-1,j}).
  double forgetting_first_minus_last() const { return drop(size() - 1, Best::first); }
  /// The maximum includes the last row, so that it is never negative.
  double forgetting_max_incl_final() const { return drop(size() - 1, Best::including_last); }

  /// Lopez-Paz and Ranzato, NeurIPS 2017: (1/(T-1)) sum_{j<T-1} (R_{T-1,j} - R_jj).
  double bwt() const { return 0 - forgetting_first_minus_last(); }
  double bwt_over_T() const { return bwt() * over_T(); }  ///< divided by T, as in the released code
  /// Diaz-Rodriguez et al., 2018: sum_{i>j} (R_ij - R_jj) / (T(T-1)/2), and its two halves.
  double bwt_all_pairs() const;
  double rem() const;       ///< 1 - abs(min(bwt_all_pairs, 0))
  double bwt_plus() const;  ///< max(bwt_all_pairs, 0)

  /// Lopez-Paz and Ranzato, NeurIPS 2017: (1/(T-1)) sum_{j>=1} (R_{j-1,j} - b_j).
  double fwt() const;
  double fwt_over_T() const { return fwt() * over_T(); }
  /// Diaz-Rodriguez et al., 2018: sum_{i<j} R_ij / (T(T-1)/2), no baseline.
  double fwt_all_pairs() const;

  /// Chaudhry et al., ECCV 2018: I_k = a*_k - R_kk.
  double intransigence_at(std::int64_t k) const { return entry(joint_, k) - at(k, k); }
  double intransigence() const;  ///< mean over k

  /// De Lange et al., ICLR 2023, with one evaluation per experience:
  /// (1/(T-1)) sum_{j<T-1} min_{i>j} R_ij. `anytime.hpp` has the finer reading.
  double min_acc() const;
  double wc_acc() const;  ///< (1/T) R_{T-1,T-1} + ((T-1)/T) min_acc

  /// Every metric under its name, in the order of the documentation; nullopt where undefined.
  /// `forgetting_at_all` comes apart, as it is a list.
  Named<std::optional<double>> metrics() const;

 private:
  enum class Best { before, from_j, first, including_last };
  static constexpr double undefined = std::numeric_limits<double>::quiet_NaN();

  static double entry(std::vector<double> const& values, std::int64_t j) {
    return j >= 0 && j < static_cast<std::int64_t>(values.size())
               ? values[static_cast<std::size_t>(j)]
               : undefined;
  }
  double over_T() const { return (count() - 1) / count(); }
  double count() const { return static_cast<double>(size()); }
  double pooled_after(std::int64_t i) const;
  double incremental(std::int64_t from, bool by_sample) const;
  double drop(std::int64_t k, Best best) const;

  c10::SmallVector<AccuracyRow, 0> rows_;
  std::vector<double> untrained_, joint_;
};

inline void AccuracyMatrix::append(AccuracyRow row) {
  for (std::size_t j = 0; j < row.accuracy.size(); ++j) {
    auto const a = row.accuracy[j];
    require(std::isnan(a) || (a >= 0 && a <= 1),
            {"accuracy matrix: row ", size(), ", experience ", j, " is ", a,
             "; give fractions in [0, 1], or NaN where nothing was evaluated"});
  }
  require(row.size.empty() || row.size.size() == row.accuracy.size(),
          {"accuracy matrix: row ", size(), " has ", row.accuracy.size(), " accuracies but ",
           row.size.size(), " test sizes; give as many, or none"});
  require(rows_.empty() || rows_.front().prediction == row.prediction,
          {"accuracy matrix: row ", size(), " was predicted as '", row.prediction,
           "' but the first one as '", rows_.empty() ? "" : rows_.front().prediction,
           "'; keep one matrix for each"});
  require(rows_.empty() || rows_.front().active == row.active,
          {"accuracy matrix: the classes that competed in row ", size(), " are '", row.active,
           "' but '", rows_.empty() ? "" : rows_.front().active,
           "' in the first one; keep one matrix for each"});
  rows_.push_back(std::move(row));
}

inline double AccuracyMatrix::at(std::int64_t i, std::int64_t j) const {
  return i >= 0 && i < size() ? entry(rows_[static_cast<std::size_t>(i)].accuracy, j) : undefined;
}

inline double AccuracyMatrix::accuracy_after(std::int64_t i) const {
  if (i < 0) return undefined;
  double sum = 0;
  for (std::int64_t j = 0; j <= i; ++j) sum += at(i, j);
  return sum / static_cast<double>(i + 1);
}

inline double AccuracyMatrix::pooled_after(std::int64_t i) const {
  if (i < 0) return undefined;
  auto const& sizes = rows_[static_cast<std::size_t>(i)].size;
  if (static_cast<std::int64_t>(sizes.size()) <= i) return undefined;
  double right = 0, samples = 0;
  for (std::int64_t j = 0; j <= i; ++j) {
    auto const n = static_cast<double>(sizes[static_cast<std::size_t>(j)]);
    right += n * at(i, j);
    samples += n;
  }
  return right / samples;
}

inline double AccuracyMatrix::incremental(std::int64_t from, bool by_sample) const {
  if (size() <= from) return undefined;
  double sum = 0;
  for (auto i = from; i < size(); ++i) sum += by_sample ? pooled_after(i) : accuracy_after(i);
  return sum / static_cast<double>(size() - from);
}

inline double AccuracyMatrix::learning_accuracy() const {
  double sum = 0;
  for (std::int64_t j = 0; j < size(); ++j) sum += at(j, j);
  return sum / count();
}

inline double AccuracyMatrix::matrix_mean() const {
  double sum = 0;
  for (std::int64_t i = 0; i < size(); ++i) {
    for (std::int64_t j = 0; j <= i; ++j) sum += at(i, j);
  }
  return sum / (count() * (count() + 1) / 2);
}

/// (1/k) sum_{j<k} (best of j - R_kj), the family of all forgettings.
inline double AccuracyMatrix::drop(std::int64_t k, Best best) const {
  if (k < 1 || k >= size()) return undefined;
  double sum = 0;
  for (std::int64_t j = 0; j < k; ++j) {
    auto top = best == Best::first ? at(j, j) : undefined;
    auto const begin = best == Best::from_j ? j : 0;
    auto const end = best == Best::first ? 0 : k;
    for (auto i = begin; i < end; ++i) top = std::fmax(top, at(i, j));  // fmax passes NaN over
    if (best == Best::including_last && !std::isnan(top)) top = std::fmax(top, at(k, j));
    sum += top - at(k, j);
  }
  return sum / static_cast<double>(k);
}

inline std::vector<double> AccuracyMatrix::forgetting_at_all() const {
  std::vector<double> all;
  for (std::int64_t k = 1; k < size(); ++k) all.push_back(forgetting_at(k));
  return all;
}

inline double AccuracyMatrix::bwt_all_pairs() const {
  double sum = 0;
  for (std::int64_t i = 1; i < size(); ++i) {
    for (std::int64_t j = 0; j < i; ++j) sum += at(i, j) - at(j, j);
  }
  return size() < 2 ? undefined : sum / (count() * (count() - 1) / 2);
}

inline double AccuracyMatrix::rem() const {
  auto const b = bwt_all_pairs();
  return std::isnan(b) ? undefined : 1 - std::abs(std::min(b, 0.0));
}

inline double AccuracyMatrix::bwt_plus() const {
  auto const b = bwt_all_pairs();
  return std::isnan(b) ? undefined : std::max(b, 0.0);
}

inline double AccuracyMatrix::fwt() const {
  if (size() < 2) return undefined;
  double sum = 0;
  for (std::int64_t j = 1; j < size(); ++j) sum += at(j - 1, j) - entry(untrained_, j);
  return sum / (count() - 1);
}

inline double AccuracyMatrix::fwt_all_pairs() const {
  if (size() < 2) return undefined;
  double sum = 0;
  for (std::int64_t j = 1; j < size(); ++j) {
    for (std::int64_t i = 0; i < j; ++i) sum += at(i, j);
  }
  return sum / (count() * (count() - 1) / 2);
}

inline double AccuracyMatrix::intransigence() const {
  double sum = 0;
  for (std::int64_t k = 0; k < size(); ++k) sum += intransigence_at(k);
  return sum / count();
}

inline double AccuracyMatrix::min_acc() const {
  if (size() < 2) return undefined;
  double sum = 0;
  for (std::int64_t j = 0; j + 1 < size(); ++j) {
    auto low = undefined;
    bool before = false;  // a task that was measured in the end alone has no curve
    for (auto i = j; i < size(); ++i) {
      before = before || (i + 1 < size() && !std::isnan(at(i, j)));
      if (i > j) low = std::fmin(low, at(i, j));
    }
    sum += before ? low : undefined;
  }
  return sum / (count() - 1);
}

inline double AccuracyMatrix::wc_acc() const {
  return at(size() - 1, size() - 1) / count() + over_T() * min_acc();
}

inline Named<std::optional<double>> AccuracyMatrix::metrics() const {
  Named<std::optional<double>> all;
  auto const add = [&all](char const* name, double value) {
    all.emplace_back(name, std::isnan(value) ? std::nullopt : std::optional(value));
  };
  add("final_accuracy", final_accuracy());
  add("average_incremental", average_incremental());
  add("average_incremental_from_second", average_incremental_from_second());
  add("learning_accuracy", learning_accuracy());
  add("matrix_mean", matrix_mean());
  add("forgetting", forgetting());
  add("forgetting_max_from_j", forgetting_max_from_j());
  add("forgetting_first_minus_last", forgetting_first_minus_last());
  add("forgetting_max_incl_final", forgetting_max_incl_final());
  add("bwt", bwt());
  add("bwt_over_T", bwt_over_T());
  add("bwt_all_pairs", bwt_all_pairs());
  add("rem", rem());
  add("bwt_plus", bwt_plus());
  add("fwt", fwt());
  add("fwt_over_T", fwt_over_T());
  add("fwt_all_pairs", fwt_all_pairs());
  add("intransigence", intransigence());
  add("min_acc", min_acc());
  add("wc_acc", wc_acc());
  add("final_accuracy_by_sample", final_accuracy_by_sample());
  add("average_incremental_by_sample", average_incremental_by_sample());
  return all;
}

}  // namespace v0
}  // namespace pawl
