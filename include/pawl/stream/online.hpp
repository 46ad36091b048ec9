#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/options.hpp"
#include "../core/random.hpp"
#include "joint.hpp"

namespace pawl {
inline namespace v0 {

/// Whether the parts of an experience can be told from those of the next.
enum class Boundaries {
  shown,  ///< parts list the classes, and carry the task id and the number, of their experience
  hidden  ///< parts list the classes that occur in them, and carry neither
};

/// How `chunks` cuts experiences.
struct Chunks {
  std::int64_t size = 10;                     ///< samples per part
  bool drop_last = false;                     ///< drop a shorter last part of an experience
  Boundaries boundaries = Boundaries::shown;  ///< shown | hidden

  void describe(Options& o) {
    o("size", size, at_least(1), "samples per part");
    o("drop_last", drop_last, "drop a shorter last part of an experience");
    o("boundaries", boundaries, {"shown", "hidden"},
      "whether parts carry the classes and the task id of their experience");
  }
};

namespace detail {

inline std::vector<std::int64_t> present_classes(Tensor const& labels) {
  auto const* const begin = labels.data_ptr<std::int64_t>();
  std::vector<std::int64_t> classes;
  insert_sorted(classes, {begin, begin + labels.numel()});
  return classes;
}

}  // namespace detail

/// An online stream: each experience is shuffled once and cut into consecutive parts of `size`
/// samples, the last one short or dropped. Parts are numbered through and learned as experiences:
/// what strategies do at the end of one is done after each. Each tests on the test set of its
/// experience.
inline Stream chunks(Stream const& stream, Chunks options = {}, Seed seed = {}) {
  require(options.size >= 1, {"chunks: size is ", options.size, "; give 1 or more samples"});
  auto const hidden = options.boundaries == Boundaries::hidden;
  require(!hidden || stream.scenario != Scenario::task,
          {"chunks: task ids tell the boundaries of '", stream.name,
           "'; use boundaries = shown, or the domain or class scenario"});
  Stream parts{.name = stream.name + ", online",
               .scenario = stream.scenario,
               .outputs = stream.outputs,
               .experiences = {}};
  for (auto const& experience : stream) {
    auto const n = experience.train.size();
    auto const order = seed.generator("stream", experience.index, 1).permutation(n);
    auto const shuffled = experience.train.select(torch::tensor(order, torch::kInt64));
    for (std::int64_t begin = 0; begin < n; begin += options.size) {
      auto const end = std::min(begin + options.size, n);
      if (options.drop_last && end - begin < options.size) break;
      auto part = experience;
      part.index = parts.size();
      part.part_of = hidden ? -1 : experience.index;
      part.train.rows = shuffled.rows.slice(0, begin, end);
      part.train.labels = shuffled.labels.slice(0, begin, end);
      if (shuffled.tasks.defined()) part.train.tasks = shuffled.tasks.slice(0, begin, end);
      if (hidden) part.classes = detail::present_classes(part.train.labels);
      parts.experiences.push_back(std::move(part));
    }
  }
  require(parts.size() > 0,
          {"chunks: no experience of '", stream.name, "' has ", options.size,
           " samples, so all parts were dropped; set drop_last = false or a smaller size"});
  return parts;
}

/// The positions after which the test set changes: for a stream of `chunks` the last part of each
/// experience, which is where to evaluate; for any other stream all of them.
inline std::vector<std::int64_t> evaluation_points(Stream const& stream) {
  std::vector<std::int64_t> points;
  for (std::int64_t e = 0; e < stream.size(); ++e) {
    if (e + 1 < stream.size() && detail::same_set(stream[e].test, stream[e + 1].test)) continue;
    points.push_back(e);
  }
  return points;
}

/// Trains each experience on `rows` samples drawn from it without replacement, in random order (0,
/// or more than there are: all, as they are). Tests stay whole.
inline Stream subsample(Stream stream, std::int64_t rows, Seed seed = {}) {
  require(rows >= 0, {"subsample: ", rows, " rows; give 0 (all) or more"});
  for (auto& experience : stream.experiences) {
    auto const n = experience.train.size();
    if (rows == 0 || rows >= n) continue;
    auto const chosen = seed.generator("stream", experience.index, 2).sample(rows, n);
    experience.train = experience.train.select(torch::tensor(chosen, torch::kInt64));
  }
  return stream;
}

}  // namespace v0
}  // namespace pawl
