#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

namespace detail {

inline bool same_set(Dataset const& a, Dataset const& b) {
  return a.source == b.source && a.rows.is_same(b.rows) && a.labels.is_same(b.labels);
}

}  // namespace detail

/// The upper reference: one experience that trains on the union of all training sets, experience by
/// experience, and tests on the union of all test sets (one shared by parts of an experience counts
/// once).
inline Stream joint(Stream const& stream) {
  require(stream.size() > 0, "joint: the stream is empty; build one with experiences");
  Experience all{.classes = {}, .train = {}, .test = {}};
  std::vector<Dataset> train, test;
  for (auto const& experience : stream) {
    insert_sorted(all.classes, experience.classes);
    train.push_back(experience.train);
    auto const shared = [&](Dataset const& set) { return detail::same_set(set, experience.test); };
    if (std::none_of(test.begin(), test.end(), shared)) test.push_back(experience.test);
  }
  all.train = concatenate(train);
  all.test = concatenate(test);
  return {.name = stream.name + ", joint",
          .scenario = stream.scenario,
          .outputs = stream.outputs,
          .experiences = {std::move(all)}};
}

/// Experience e trains on the union of the training sets 0 .. e, oldest first, and tests as before.
/// Its task id stays that of experience e; rows keep their own.
inline Stream cumulative(Stream const& stream) {
  auto result = stream;
  result.name += ", cumulative";
  std::vector<Dataset> train;
  std::vector<std::int64_t> classes;
  for (auto& experience : result.experiences) {
    train.push_back(experience.train);
    insert_sorted(classes, experience.classes);
    experience.train = concatenate(train);
    experience.classes = classes;
  }
  return result;
}

}  // namespace v0
}  // namespace pawl
