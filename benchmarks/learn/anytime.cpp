#include "anytime.hpp"

#include <chrono>
#include <cmath>
#include <iterator>
#include <limits>

#include "cost.hpp"

namespace bench {

AnytimeObserver::AnytimeObserver(std::function<std::vector<double>()> evaluate, std::int64_t tasks,
                                 std::int64_t every)
    : evaluate_(std::move(evaluate)), every_(every) {
  curves_.accuracy.resize(static_cast<std::size_t>(tasks));
}

void AnytimeObserver::step(pawl::Context const& c) {
  if (++steps_ % every_ != 0) return;
  auto const begin = std::chrono::steady_clock::now();
  add(evaluate_());
  wait_for(c.arena.device());
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void AnytimeObserver::end(std::int64_t experience, std::vector<double> const& accuracy) {
  if (evaluated_ < steps_ && !accuracy.empty()) add(accuracy);
  experience_ = experience + 1;
}

void AnytimeObserver::add(std::vector<double> const& accuracy) {
  evaluated_ = steps_;
  points_.push_back({steps_, accuracy});
  curves_.experience.push_back(experience_);
  for (std::size_t j = 0; j < curves_.accuracy.size(); ++j) {
    curves_.accuracy[j].push_back(accuracy[j]);
  }
}

/// Chaudhry et al. look at every batch: undefined when fewer are evaluated, or learned.
double AnytimeObserver::learning_curve_area(std::vector<double> const& untrained) const {
  constexpr std::int64_t batches = 10;
  constexpr double undefined = std::numeric_limits<double>::quiet_NaN();
  if (every_ != 1 || untrained.empty()) return undefined;
  std::vector<std::vector<double>> first;
  for (std::int64_t j = 0; j < tasks(); ++j) {
    std::vector<double> curve{untrained[static_cast<std::size_t>(j)]};
    for (std::int64_t n = 0; n < curves_.evaluations(); ++n) {
      if (curves_.current(n) < j) curve.front() = curves_.at(j, n);
      if (curves_.current(n) == j) curve.push_back(curves_.at(j, n));
    }
    if (static_cast<std::int64_t>(curve.size()) <= batches) return undefined;
    first.push_back(std::move(curve));
  }
  return pawl::lca(first, batches);
}

std::vector<std::pair<std::string, std::optional<double>>> AnytimeObserver::metrics(
    std::vector<double> const& untrained) const {
  double gaps = 0;
  for (std::int64_t j = 0; j + 1 < tasks(); ++j) gaps += pawl::gap(curves_, j, 10);
  double const values[] = {pawl::aaa(curves_),
                           pawl::min_acc(curves_),
                           pawl::wc_acc(curves_),
                           pawl::wf(curves_, 10),
                           pawl::wf(curves_, 100),
                           pawl::wp(curves_, 10),
                           pawl::wp(curves_, 100),
                           gaps / static_cast<double>(tasks() - 1),
                           learning_curve_area(untrained)};
  static_assert(std::size(values) == std::size(anytime_names));
  std::vector<std::pair<std::string, std::optional<double>>> all;
  for (std::size_t i = 0; i < std::size(values); ++i) {
    auto const known = !std::isnan(values[i]);
    all.emplace_back(anytime_names[i], known ? std::optional(values[i]) : std::nullopt);
  }
  return all;
}

}  // namespace bench
