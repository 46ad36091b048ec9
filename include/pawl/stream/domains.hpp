#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "label_rule.hpp"

namespace pawl {
inline namespace v0 {

/// A stream that shows one data set in `experiences` different ways: `view(e, source)` is how
/// experience e sees a source, train and test alike. Labels stay as they are, under `by_order` (the
/// default in the class scenario) label y of experience e becomes y + C * e.
template <class View>
Stream domains(TrainTest const& data, std::int64_t experiences, Scenario scenario, LabelRule labels,
               std::string name, View view) {
  require(experiences >= 1, {name, ": experiences is ", experiences, "; give 1 or more"});
  auto const shift = labels == LabelRule::by_order ||
                     (labels == LabelRule::automatic && scenario == Scenario::classes);
  Stream stream{.name = std::move(name), .scenario = scenario, .experiences = {}};
  stream.outputs = shift ? data.classes * experiences : data.classes;
  auto const train = whole(data.train, data.normalise);
  auto const test = whole(data.test, data.normalise);
  for (std::int64_t e = 0; e < experiences; ++e) {
    Experience experience{.index = e, .classes = {}, .train = train, .test = test};
    auto const offset = shift ? data.classes * e : 0;
    for (std::int64_t c = 0; c < data.classes; ++c) experience.classes.push_back(c + offset);
    if (scenario == Scenario::task) experience.task = e;
    for (auto const part : {&Experience::train, &Experience::test}) {
      auto& set = experience.*part;
      set.source = view(e, set.source);
      if (offset != 0) set.labels = set.labels + offset;
      if (scenario == Scenario::task) set.tasks = torch::full_like(set.labels, e);
    }
    stream.experiences.push_back(std::move(experience));
  }
  return stream;
}

}  // namespace v0
}  // namespace pawl
