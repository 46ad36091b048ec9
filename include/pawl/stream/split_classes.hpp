#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/options.hpp"
#include "../core/random.hpp"
#include "label_rule.hpp"

namespace pawl {
inline namespace v0 {

/// In which order classes come.
enum class ClassOrder {
  natural,  ///< 0, 1, 2, ...
  shuffled  ///< drawn from the seed
};

/// How `split_classes` cuts a data set. Compare results only under the same class order: natural
/// and shuffled orders of Split-MNIST differ by points.
struct SplitClasses {
  std::int64_t experiences = 5;             ///< number of experiences, T
  ClassOrder order = ClassOrder::natural;   ///< natural | shuffled
  std::vector<std::int64_t> class_order{};  ///< explicit order of all classes; replaces `order`
  std::int64_t first = 0;                   ///< classes of the first experience; 0: equal parts
  Scenario scenario = Scenario::classes;    ///< task | domain | class
  LabelRule labels = LabelRule::automatic;  ///< class: raw; domain and task: within

  void describe(Options& o) {
    o("experiences", experiences, at_least(1), "number of experiences");
    o("order", order, {"natural", "shuffled"},
      "order of the classes: as numbered, or from the seed");
    o.only_if(class_order.empty(), "class_order is empty");
    o("class_order", class_order, at_least(0), "explicit order of all classes; empty: see order");
    o("first", first, at_least(0), "number of classes of the first experience; 0: equal parts");
    detail::describe_scenario(o, scenario, labels);
  }
};

namespace detail {

inline std::vector<std::int64_t> class_order(SplitClasses const& options, std::int64_t classes,
                                             Seed seed) {
  auto order = options.class_order;
  if (order.empty()) {
    if (options.order == ClassOrder::shuffled) return seed.generator("stream").permutation(classes);
    for (std::int64_t c = 0; c < classes; ++c) order.push_back(c);
    return order;
  }
  require(options.order == ClassOrder::natural,
          "split_classes: both an explicit class_order and order = shuffled are given; give one");
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  bool complete = static_cast<std::int64_t>(sorted.size()) == classes;
  for (std::size_t i = 0; complete && i < sorted.size(); ++i) {
    complete = sorted[i] == static_cast<std::int64_t>(i);
  }
  require(complete, {"split_classes: class_order must name each of the classes 0 .. ", classes - 1,
                     " once, but has ", order.size(), " entries: ", c10::Join(",", order)});
  return order;
}

/// Number of classes of each experience: the first C mod T parts get one class more.
inline std::vector<std::int64_t> class_counts(SplitClasses const& options, std::int64_t classes) {
  auto parts = options.experiences;
  require(parts >= 1, {"split_classes: experiences is ", parts, "; give 1 or more"});
  require(parts <= classes, {"split_classes: ", parts, " experiences for ", classes,
                             " classes; give at most one experience per class"});
  require(options.first >= 0,
          {"split_classes: first is ", options.first, "; give 0 or more classes"});
  std::vector<std::int64_t> counts;
  auto left = classes;
  if (options.first > 0) {
    auto const most = classes - (parts - 1);
    require(options.first <= most && (parts > 1 || options.first == classes),
            {"split_classes: first = ", options.first, " classes and ", parts - 1,
             " further experiences do not share out ", classes,
             " classes; with that many experiences the first takes ",
             parts == 1 ? "all " : "at most ", most});
    counts.push_back(options.first);
    left -= options.first;
    --parts;
  }
  for (std::int64_t e = 0; e < parts; ++e)
    counts.push_back(left / parts + (e < left % parts ? 1 : 0));
  return counts;
}

/// Which class goes where, and as which network output.
struct SplitPlan {
  std::vector<std::vector<std::int64_t>> outputs;  ///< of each experience, sorted
  std::vector<std::size_t> experience;             ///< of each class
  std::vector<std::int64_t> output;                ///< of each class
};

inline SplitPlan plan_split(SplitClasses const& options, std::int64_t classes, Seed seed) {
  auto const counts = class_counts(options, classes);
  auto const order = class_order(options, classes, seed);
  SplitPlan plan{.outputs = std::vector<std::vector<std::int64_t>>(counts.size()),
                 .experience = std::vector<std::size_t>(order.size()),
                 .output = std::vector<std::int64_t>(order.size())};
  std::size_t position = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    for (std::int64_t k = 0; k < counts[e]; ++k, ++position) {
      auto output = order[position];
      auto const c = static_cast<std::size_t>(output);
      if (options.labels == LabelRule::within) output = k;
      if (options.labels == LabelRule::by_order) output = static_cast<std::int64_t>(position);
      plan.experience[c] = e;
      plan.output[c] = output;
      plan.outputs[e].push_back(output);
    }
    std::sort(plan.outputs[e].begin(), plan.outputs[e].end());
  }
  return plan;
}

/// The samples of each experience, in file order, as views of one source.
inline std::vector<Dataset> split_source(std::shared_ptr<Source const> const& source,
                                         Normalise const& normalise, SplitPlan const& plan) {
  std::vector<std::vector<std::int64_t>> rows(plan.outputs.size()), labels(plan.outputs.size());
  auto const all = source->labels.contiguous();
  auto const* const label = all.data_ptr<std::int64_t>();
  auto const classes = static_cast<std::int64_t>(plan.output.size());
  for (std::int64_t i = 0; i < source->size(); ++i) {
    require(label[i] >= 0 && label[i] < classes,
            {"split_classes: row ", i, " of '", source->name, "' has the label ", label[i],
             ", but labels are 0 .. ", classes - 1,
             "; set TrainTest::classes to the number of classes"});
    auto const c = static_cast<std::size_t>(label[i]);
    rows[plan.experience[c]].push_back(i);
    labels[plan.experience[c]].push_back(plan.output[c]);
  }
  std::vector<Dataset> sets;
  for (std::size_t e = 0; e < rows.size(); ++e) {
    sets.push_back({.source = source,
                    .rows = torch::tensor(rows[e], torch::kInt64),
                    .labels = torch::tensor(labels[e], torch::kInt64),
                    .tasks = {},
                    .normalise = normalise});
  }
  return sets;
}

}  // namespace detail

/// A stream whose experiences hold different classes of one data set. Views are row lists over the
/// data; no pixel is copied, and no random generator but the seed's own "stream" is used.
/// @code
///   auto const stream = pawl::split_classes(pawl::load_mnist("data"), {.experiences = 5});
/// @endcode
inline Stream split_classes(TrainTest const& data, SplitClasses options = {}, Seed seed = {}) {
  if (options.labels == LabelRule::automatic) {
    options.labels = options.scenario == Scenario::classes ? LabelRule::raw : LabelRule::within;
  }
  auto const plan = detail::plan_split(options, data.classes, seed);
  auto train = detail::split_source(data.train, data.normalise, plan);
  auto test = detail::split_source(data.test, data.normalise, plan);
  auto const within = options.labels == LabelRule::within;
  Stream stream{.name = "split_" + data.name,
                .scenario = options.scenario,
                .outputs = within ? 0 : data.classes,
                .experiences = {}};
  for (std::size_t e = 0; e < plan.outputs.size(); ++e) {
    require(train[e].size() > 0, {"split_classes: experience ", e, " has no training samples; '",
                                  data.train->name, "' lacks its classes"});
    Experience experience{.index = stream.size(),
                          .classes = plan.outputs[e],
                          .train = std::move(train[e]),
                          .test = std::move(test[e])};
    if (options.scenario == Scenario::task) {
      experience.task = experience.index;
      experience.train.tasks = torch::full_like(experience.train.labels, experience.task);
      experience.test.tasks = torch::full_like(experience.test.labels, experience.task);
    }
    auto const count = static_cast<std::int64_t>(plan.outputs[e].size());
    if (within) stream.outputs = std::max(stream.outputs, count);
    stream.experiences.push_back(std::move(experience));
  }
  return stream;
}

}  // namespace v0
}  // namespace pawl
