#include "pawl/metrics/accuracy_matrix.hpp"
#include "pawl/metrics/anytime.hpp"
#include "pawl/metrics/comparison.hpp"
#include "pawl/metrics/statistics.hpp"

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace {

double const missing = std::numeric_limits<double>::quiet_NaN();

std::vector<std::vector<double>> const shared_vector{
    {.90, .10, .12, .08}, {.95, .92, .15, .09}, {.85, .96, .94, .11}, {.97, .80, .90, .93}};

pawl::AccuracyMatrix shared_matrix() {
  pawl::AccuracyMatrix accuracy;
  for (auto const& row : shared_vector) accuracy.append(row);
  accuracy.untrained(std::vector<double>{.1, .1, .1, .1});
  return accuracy;
}

std::map<std::string, std::optional<double>> named(pawl::AccuracyMatrix const& accuracy) {
  auto const all = accuracy.metrics();
  return {all.begin(), all.end()};
}

void check_close(double value, double expected, double tolerance = 1e-6) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::abs(value - expected) <= tolerance);
}

/// Curves of four tasks with one evaluation per experience: the rows of the shared matrix.
pawl::AnytimeCurves shared_curves() {
  pawl::AnytimeCurves curves;
  curves.experience = {0, 1, 2, 3};
  for (std::size_t j = 0; j < 4; ++j) {
    curves.accuracy.push_back({});
    for (auto const& row : shared_vector) curves.accuracy.back().push_back(row[j]);
  }
  return curves;
}

}  // namespace

TEST_CASE("every metric has its published value on the shared matrix") {
  auto const accuracy = shared_matrix();
  check_close(accuracy.final_accuracy(), .9);
  check_close(accuracy.average(), .9);
  check_close(accuracy.accuracy_after(1), .935);
  check_close(accuracy.accuracy_after(2), .916667);
  check_close(accuracy.average_incremental(), .912917);
  check_close(accuracy.average_incremental_from_second(), .917222);
  check_close(accuracy.learning_accuracy(), .9225);
  check_close(accuracy.matrix_mean(), .9120);
  check_close(accuracy.forgetting(), .06);
  check_close(accuracy.forgetting_max_from_j(), .06);
  check_close(accuracy.forgetting_first_minus_last(), .03);
  check_close(accuracy.forgetting_max_incl_final(), .066667);
  check_close(accuracy.bwt(), -.03);
  check_close(accuracy.bwt_over_T(), -.0225);
  check_close(accuracy.bwt_all_pairs(), -.008333);
  check_close(accuracy.rem(), .991667);
  CHECK(accuracy.bwt_plus() == 0);
  check_close(accuracy.fwt(), .02);
  check_close(accuracy.fwt_over_T(), .015);
  check_close(accuracy.fwt_all_pairs(), .108333);
  check_close(accuracy.forgetting_at(1), -.05);
  check_close(accuracy.forgetting_at(2), .03);
  check_close(accuracy.forgetting_at(3), .06);
  CHECK(accuracy.forgetting_at_all().size() == 3);
  check_close(accuracy.min_acc(), .85);
  check_close(accuracy.wc_acc(), .87);
  CHECK(std::isnan(accuracy.intransigence()));
}

TEST_CASE("the list of metrics has every name once and the values of the methods") {
  auto const accuracy = shared_matrix();
  auto const all = accuracy.metrics();
  auto const by_name = named(accuracy);
  CHECK(all.size() == 22);
  CHECK(by_name.size() == all.size());
  CHECK(all.front().first == "final_accuracy");
  check_close(*by_name.at("forgetting"), .06);
  check_close(*by_name.at("wc_acc"), .87);
  check_close(*by_name.at("bwt_over_T"), -.0225);
  CHECK_FALSE(by_name.at("intransigence").has_value());
  CHECK_FALSE(by_name.at("final_accuracy_by_sample").has_value());
}

TEST_CASE("intransigence is the distance to joint training, per experience and in the mean") {
  auto accuracy = shared_matrix();
  accuracy.joint({.95, .94, .95, .97});
  check_close(accuracy.intransigence_at(0), .05);
  check_close(accuracy.intransigence_at(3), .04);
  check_close(accuracy.intransigence(), (.05 + .02 + .01 + .04) / 4);
}

TEST_CASE("with one experience whatever needs a second one is undefined, not 0") {
  pawl::AccuracyMatrix accuracy;
  accuracy.append(std::vector<double>{.9});
  accuracy.untrained(std::vector<double>{.1});
  accuracy.joint({.95});
  auto const all = named(accuracy);
  for (auto const* name : {"average_incremental_from_second", "forgetting", "forgetting_max_from_j",
                           "forgetting_first_minus_last", "forgetting_max_incl_final", "bwt",
                           "bwt_over_T", "bwt_all_pairs", "rem", "bwt_plus", "fwt", "fwt_over_T",
                           "fwt_all_pairs", "min_acc", "wc_acc"}) {
    CAPTURE(name);
    CHECK_FALSE(all.at(name).has_value());
  }
  for (auto const* name :
       {"final_accuracy", "average_incremental", "learning_accuracy", "matrix_mean"}) {
    CHECK(*all.at(name) == .9);
  }
  check_close(*all.at("intransigence"), .05);
  CHECK(accuracy.forgetting_at_all().empty());
}

TEST_CASE("an empty matrix has no metric") {
  auto const all = pawl::AccuracyMatrix{}.metrics();
  for (auto const& metric : all) {
    CAPTURE(metric.first);
    CHECK_FALSE(metric.second.has_value());
  }
}

TEST_CASE(
    "without an upper triangle extrema run over what exists and forward transfer is undefined") {
  pawl::AccuracyMatrix accuracy;
  for (std::size_t i = 0; i < 4; ++i) {
    auto row = shared_vector[i];
    if (i % 2 == 0) row.resize(i + 1);  // too short, or filled up with NaN: both mean missing
    for (auto j = i + 1; j < row.size(); ++j) row[j] = missing;
    accuracy.append(row);
  }
  accuracy.untrained(std::vector<double>{.1, .1, .1, .1});
  check_close(accuracy.forgetting(), .06);
  check_close(accuracy.average_incremental(), .912917);
  check_close(accuracy.bwt_all_pairs(), -.008333);
  check_close(accuracy.min_acc(), .85);
  CHECK(std::isnan(accuracy.fwt()));
  CHECK(std::isnan(accuracy.fwt_over_T()));
  CHECK(std::isnan(accuracy.fwt_all_pairs()));
}

TEST_CASE("what was measured in the end alone has no forgetting and no curve") {
  pawl::AccuracyMatrix accuracy;
  for (int i = 0; i < 3; ++i) accuracy.append(std::vector<double>(4, missing));
  accuracy.append(shared_vector[3]);
  check_close(accuracy.final_accuracy(), .9);
  for (auto const& metric : accuracy.metrics()) {
    CAPTURE(metric.first);
    CHECK(metric.second.has_value() == (metric.first == "final_accuracy"));
  }
}

TEST_CASE("forgetting looks at rows from before an experience, its restriction does not") {
  pawl::AccuracyMatrix accuracy;
  accuracy.append(std::vector<double>{.9, .7, .1});
  accuracy.append(std::vector<double>{.9, .5, .1});
  accuracy.append(std::vector<double>{.8, .4, .9});
  check_close(accuracy.forgetting(), (.1 + .3) / 2);
  check_close(accuracy.forgetting_max_from_j(), (.1 + .1) / 2);
}

TEST_CASE("a growing matrix gives the metrics of the stream so far") {
  pawl::AccuracyMatrix accuracy;
  accuracy.append(shared_vector[0]);
  accuracy.append(shared_vector[1]);
  check_close(accuracy.final_accuracy(), .935);
  check_close(accuracy.forgetting(), -.05);
}

TEST_CASE("a row that was not evaluated makes only those means undefined that need it") {
  pawl::AccuracyMatrix accuracy;
  accuracy.append(std::vector<double>{});
  accuracy.append(std::vector<double>{.8, .6});
  check_close(accuracy.final_accuracy(), .7);
  CHECK(std::isnan(accuracy.average_incremental()));
  CHECK(std::isnan(accuracy.forgetting()));
}

TEST_CASE("by sample weighs experiences by their number of test samples") {
  pawl::AccuracyMatrix accuracy;
  accuracy.append(pawl::AccuracyRow{.accuracy = {.9, .2}, .size = {100, 300}});
  accuracy.append(pawl::AccuracyRow{.accuracy = {.5, .9}, .size = {100, 300}});
  check_close(accuracy.final_accuracy(), .7);
  check_close(accuracy.final_accuracy_by_sample(), .8);
  check_close(accuracy.average_incremental_by_sample(), .85);
  check_close(pawl::pooled_accuracy(accuracy.rows()[1]), .8);
  check_close(pawl::mean_accuracy(accuracy.rows()[1]), .7);
}

TEST_CASE("property 43: the identities between metrics hold on random matrices") {
  std::uint64_t word = 1;
  for (int trial = 0; trial < 50; ++trial) {
    pawl::AccuracyMatrix accuracy;
    auto const T = 2 + trial % 5;
    for (int i = 0; i < T; ++i) {
      std::vector<double> row;
      for (int j = 0; j < T; ++j) {
        word = word * 6364136223846793005ULL + 1442695040888963407ULL;
        row.push_back(static_cast<double>(word >> 11) * 0x1.0p-53);
      }
      accuracy.append(row);
    }
    CHECK(accuracy.bwt() == -accuracy.forgetting_first_minus_last());
    CHECK(accuracy.forgetting() <= accuracy.forgetting_max_incl_final());
    CHECK(accuracy.forgetting_max_incl_final() >= 0);
    CHECK(accuracy.forgetting_max_from_j() <= accuracy.forgetting());
  }
}

TEST_CASE("the accuracy matrix refuses percent, odd sizes and mixed predictions") {
  pawl::AccuracyMatrix accuracy;
  CHECK_THROWS_WITH_AS(accuracy.append(std::vector<double>{91.0}),
                       doctest::Contains("give fractions in [0, 1]"), pawl::Error);
  CHECK_THROWS_WITH_AS(accuracy.append(pawl::AccuracyRow{.accuracy = {.5, .5}, .size = {1}}),
                       doctest::Contains("2 accuracies but 1 test sizes"), pawl::Error);
  accuracy.append(pawl::AccuracyRow{.accuracy = {.5}, .prediction = "class"});
  CHECK_THROWS_WITH_AS(
      accuracy.append(pawl::AccuracyRow{.accuracy = {.5}, .prediction = "task_masked"}),
      doctest::Contains("predicted as 'task_masked' but the first one as 'class'"), pawl::Error);
  CHECK_THROWS_WITH_AS(
      accuracy.append(pawl::AccuracyRow{.accuracy = {.5}, .prediction = "class", .active = "all"}),
      doctest::Contains("competed in row 1 are 'all' but ''"), pawl::Error);
  CHECK(accuracy.size() == 1);
}

TEST_CASE("anytime metrics with one evaluation per experience agree with the matrix") {
  check_close(pawl::min_acc(shared_curves()), .85);
  check_close(pawl::wc_acc(shared_curves()), .87);
  check_close(pawl::aaa(shared_curves()), .912917);
}

TEST_CASE("property 44: the worst accuracy is bounded by later ones") {
  auto const curves = shared_curves();
  CHECK(pawl::min_acc(curves) <= (.97 + .80 + .90) / 3);
  CHECK(pawl::wc_acc(curves) <= .9);
}

TEST_CASE("anytime metrics see the dip between two ends of experiences") {
  pawl::AnytimeCurves curves;
  curves.experience = {0, 0, 0, 1, 1, 1, 1};
  curves.accuracy = {{.5, .7, .9, .4, .6, .8, .85}, {.1, .1, .1, .3, .5, .7, .9}};
  check_close(pawl::min_acc(curves), .4);
  check_close(pawl::wc_acc(curves), .9 / 2 + .4 / 2);
  check_close(pawl::gap(curves, 0, 4), .9 - .4);
  check_close(pawl::gap(curves, 0, 1), .9 - .4);
  CHECK(std::isnan(pawl::gap(curves, 1, 4)));  // nothing follows
  check_close(pawl::aaa(curves), (.5 + .7 + .9 + .35 + .55 + .75 + .875) / 7);
  check_close(pawl::wf(curves, 2), (.5 + 0) / 2);  // neighbours: .9 -> .4
  check_close(pawl::wp(curves, 2), (.2 + .2) / 2);
  check_close(pawl::wp(curves, 3), (.4 + .4) / 2);
  check_close(pawl::wf(curves, 1), 0);
  check_close(pawl::wp(curves, 100), (.45 + .8) / 2);
}

TEST_CASE("min_acc skips evaluations that were left out and is undefined in the first experience") {
  pawl::AnytimeCurves curves;
  curves.experience = {0, 1, 1};
  curves.accuracy = {{.9, missing, .6}, {missing, .2, .8}};
  check_close(pawl::min_acc(curves), .6);
  curves = {.accuracy = {{.5, .6}}, .experience = {0, 0}};
  CHECK(std::isnan(pawl::min_acc(curves)));
  CHECK(std::isnan(pawl::wc_acc(curves)));
}

TEST_CASE("the learning-curve area averages the first batches of every task") {
  check_close(pawl::lca({{.1, .5, .9}, {.3, .7, .7}}, 2), (.2 + .6 + .8) / 3);
  check_close(pawl::lca({{.1, .5, .9}, {.3, .7, .7}}, 0), .2);
  CHECK_THROWS_WITH_AS(pawl::lca({{.1, .5}}, 10), doctest::Contains("b = 10 needs 11"),
                       pawl::Error);
}

TEST_CASE("anytime curves of unequal length are refused") {
  pawl::AnytimeCurves const curves{.accuracy = {{.5, .6}, {.5}}, .experience = {0, 0}};
  CHECK_THROWS_WITH_AS(pawl::aaa(curves), doctest::Contains("use NaN for those left out"),
                       pawl::Error);
  pawl::AnytimeCurves const lonely{.accuracy = {{.5}}, .experience = {1}};
  CHECK_THROWS_WITH_AS(pawl::aaa(lonely), doctest::Contains("number of curves"), pawl::Error);
}

TEST_CASE("a summary over seeds has the hand values") {
  auto const s = pawl::summarise({90.1, 90.7, 89.4, 90.9, 90.4});
  CHECK(s.n == 5);
  check_close(s.mean, 90.3, 1e-10);
  check_close(s.deviation, .587367);
  check_close(s.standard_error, .262679);
  check_close(s.half_width, .729312);  // 2.776445 * .262679
}

TEST_CASE("one seed has a mean and no spread") {
  auto const s = pawl::summarise({90.1});
  CHECK(s.mean == 90.1);
  CHECK(std::isnan(s.deviation));
  CHECK(std::isnan(s.standard_error));
  CHECK(std::isnan(s.half_width));
}

TEST_CASE("quantiles of Student's t are those of the tables") {
  for (auto const& [n, t] :
       std::map<int, double>{{2, 12.706}, {3, 4.303}, {5, 2.776}, {10, 2.262}, {20, 2.093}}) {
    check_close(pawl::t_quantile(.975, n - 1), t, 5e-4);
  }
  check_close(pawl::t_quantile(.995, 9), 3.2498, 5e-5);
  check_close(pawl::t_quantile(.995, 19), 2.8609, 5e-5);
  check_close(pawl::t_quantile(.95, 1e7), 1.644854, 1e-5);
  check_close(pawl::t_quantile(.5, 3), 0, 1e-12);
  CHECK(pawl::t_quantile(.025, 4) == -pawl::t_quantile(.975, 4));
  check_close(pawl::t_quantile(.975, 1), std::tan(.475 * 3.14159265358979), 1e-9);  // Cauchy
  check_close(pawl::t_two_sided(pawl::t_quantile(.9999, 7), 7), 2e-4, 1e-12);
}

TEST_CASE("the incomplete beta function has its closed forms") {
  check_close(pawl::incomplete_beta(1, 1, .3), .3, 1e-14);
  check_close(pawl::incomplete_beta(2, 3, .4), .5248, 1e-14);
  check_close(pawl::incomplete_beta(.5, .5, .25), 1. / 3, 1e-14);  // (2/pi) asin sqrt x
  CHECK(pawl::incomplete_beta(2, 3, 0) == 0);
  CHECK(pawl::incomplete_beta(2, 3, 1) == 1);
}

TEST_CASE("printed spreads of every kind become sample deviations") {
  check_close(pawl::sample_deviation(.94, pawl::Spread::standard_error, 20), 4.2, .005);
  check_close(pawl::sample_deviation(2.01, pawl::Spread::population, 10), 2.119, 5e-4);
  CHECK(pawl::sample_deviation(1.5, pawl::Spread::sample, 5) == 1.5);
  CHECK_THROWS_WITH_AS(pawl::sample_deviation(1, pawl::Spread::sample, 1),
                       doctest::Contains("give n >= 2"), pawl::Error);
}

TEST_CASE("bands of agreement with published means are the printed ones") {
  struct Target {
    double s, tolerance;
    std::int64_t N;
    double n3, n5, n10;
  };
  for (auto const& t : std::vector<Target>{{.49, .3, 3, 2.02, 1.84, 1.69},     // A14
                                           {.369, .3, 10, 1.09, .96, .84},     // A3
                                           {2.119, .3, 10, 4.83, 4.07, 3.38},  // A1
                                           {.179, .5, 10, .88, .82, .76},      // A26
                                           {1.971, .5, 10, 4.72, 4.01, 3.36},  // A28
                                           {.894, .6, 20, 2.18, 1.88, 1.59},   // A33
                                           {1.834, .5, 20, 3.75, 3.12, 2.53},  // A32
                                           {.168, .5, 5, .84, .79, .76}}) {    // A25
    CAPTURE(t.s);
    auto const level = pawl::agreement_level(t.N);
    check_close(pawl::half_width(level, t.s, 3, t.N, t.tolerance), t.n3, .0075);
    check_close(pawl::half_width(level, t.s, 5, t.N, t.tolerance), t.n5, .0075);
    check_close(pawl::half_width(level, t.s, 10, t.N, t.tolerance), t.n10, .0075);
  }
}

TEST_CASE("the paired t-test has the values of a worked example") {
  // differences 1, 2, 3, 4, 5: mean 3, s = 1.581139, SEM = .707107, t = 4.242641, df = 4
  auto const c = pawl::paired_t_test({2, 4, 6, 8, 10}, {1, 2, 3, 4, 5});
  CHECK(c.difference == 3);
  CHECK(c.df == 4);
  check_close(c.statistic, 4.242641);
  check_close(c.p, .013236, 1e-6);
  check_close(c.low, 3 - 2.776445 * .707107, 1e-5);
  check_close(c.high, 3 + 2.776445 * .707107, 1e-5);
  CHECK_THROWS_WITH_AS(pawl::paired_t_test({1, 2}, {1}), doctest::Contains("the same seeds"),
                       pawl::Error);
}

TEST_CASE("a paired difference without spread is certain, and no difference is none") {
  CHECK(pawl::paired_t_test({2, 3}, {1, 2}).p == 0);
  CHECK(pawl::paired_t_test({2, 3}, {2, 3}).p == 1);
}

TEST_CASE("Welch's test has the values of a worked example") {
  // s^2/n = 1/3 (n = 3) and 2.5/5 = .5: t = -3/sqrt(5/6), df = (5/6)^2/((1/9)/2 + (1/4)/4)
  auto const c = pawl::welch_t_test({1, 2, 3}, {3, 4, 5, 6, 7});
  CHECK(c.difference == -3);
  check_close(c.statistic, -3 / std::sqrt(5. / 6), 1e-12);
  check_close(c.df, (25. / 36) / (1. / 18 + 1. / 16), 1e-12);
  check_close(c.high - c.low, 2 * pawl::t_quantile(.975, c.df) * std::sqrt(5. / 6), 1e-12);
}

TEST_CASE("the signed-rank test is exact") {
  std::vector<double> const zero(6, 0);
  auto const all = pawl::wilcoxon({1, 2, 3, 4, 5, 6}, zero);
  CHECK(all.statistic == 21);
  CHECK(all.p == 2. / 64);
  auto const one = pawl::wilcoxon({-1, 2, 3, 4, 5, 6}, zero);
  CHECK(one.statistic == 20);
  CHECK(one.p == 4. / 64);
  CHECK(pawl::wilcoxon(zero, {1, 2, 3, 4, 5, 6}).p == 2. / 64);
}

TEST_CASE("the signed-rank test drops zeros and shares the ranks of ties") {
  auto const zeros = pawl::wilcoxon({0, 0, 1, 2, 3}, {0, 0, 0, 0, 0});
  CHECK(zeros.df == 3);
  CHECK(zeros.p == 2. / 8);
  // |d| = 1, 1, 2: ranks 1.5, 1.5, 3; W+ = 4.5. Null sums 0 1.5 1.5 3 3 4.5 4.5 6: P(W >= 4.5) =
  // 3/8
  auto const ties = pawl::wilcoxon({-1, 1, 2}, {0, 0, 0});
  CHECK(ties.statistic == 4.5);
  CHECK(ties.p == 6. / 8);
  CHECK(pawl::wilcoxon({.9, .8, .1}, {.8, .7, .2}).statistic == 4);  // ties up to rounding
  CHECK(pawl::wilcoxon({1, 1}, {1, 1}).p == 1);
}

TEST_CASE("Holm's adjustment is monotone and keeps the order given") {
  auto const adjusted = pawl::holm({.04, .01, .03, .5});
  check_close(adjusted[1], .04, 1e-15);
  check_close(adjusted[2], .09, 1e-15);
  check_close(adjusted[0], .09, 1e-15);  // 2 * .04 = .08 is raised to its predecessor
  check_close(adjusted[3], .5, 1e-15);
  CHECK(pawl::holm({.7, .8}) == std::vector<double>{1, 1});
  CHECK(pawl::holm({}).empty());
  CHECK_THROWS_WITH_AS(pawl::holm({missing}), doctest::Contains("not a p-value"), pawl::Error);
}
