#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../device/step_table.hpp"
#include "error.hpp"
#include "rows.hpp"
#include "source.hpp"

namespace pawl {
inline namespace v0 {

/// A view of a source: which rows, under which labels, and how they become inputs. A view of a view
/// holds row numbers of the source, never a chain.
struct Dataset {
  std::shared_ptr<Source const> source;
  Tensor rows;      ///< [n] int64 on the host: row numbers in the source
  Tensor labels{};  ///< [n] int64 on the host: network outputs, after label handling
  Tensor tasks;     ///< [n] int64 on the host: task ids; undefined where there are none
  Normalise normalise;

  std::int64_t size() const { return rows.defined() ? rows.size(0) : 0; }

  /// The samples at the given positions [k] int64 of this view, in that order.
  Dataset select(Tensor const& positions) const {
    Dataset view = *this;
    view.rows = rows.index_select(0, positions);
    view.labels = labels.index_select(0, positions);
    if (tasks.defined()) view.tasks = tasks.index_select(0, positions);
    return view;
  }

  /// Reads the samples at the given positions [k] int64 (host).
  Rows read(Tensor const& positions, torch::Device device = torch::kCPU) const {
    Rows result;
    result.id = rows.index_select(0, positions);
    result.labels = labels.index_select(0, positions);
    if (tasks.defined()) result.task = tasks.index_select(0, positions);
    auto shape = source->shape;
    shape.insert(shape.begin(), positions.size(0));
    result.stored =
        torch::empty(shape, torch::TensorOptions().dtype(source->dtype).device(source->device));
    auto const there = source->reads_on_device ? upload(result.id, source->device) : result.id;
    if (!planning()) source->read(there, result.stored);
    if (source->device != device) result.stored = result.stored.to(device);
    result.y = upload(result.labels, device);
    return result;
  }
};

/// Adds labels to an ascending list without repeats.
inline void insert_sorted(std::vector<std::int64_t>& all, std::vector<std::int64_t> const& more) {
  all.insert(all.end(), more.begin(), more.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
}

/// All samples of a source, under the labels of the files.
inline Dataset whole(std::shared_ptr<Source const> source, Normalise normalise = {}) {
  auto const n = source->size();
  auto labels = source->labels;
  return {.source = std::move(source),
          .rows = torch::arange(n, torch::kInt64),
          .labels = labels,
          .tasks = {},
          .normalise = std::move(normalise)};
}

/// The union of data sets, in the order given. Views of one source stay a view of it; else the rows
/// are read from each source in turn, and nothing is copied.
inline Dataset concatenate(std::vector<Dataset> const& sets) {
  require(!sets.empty(), "concatenate: no data sets given");
  Dataset all = sets.front();
  if (sets.size() == 1) return all;
  std::vector<Tensor> rows, labels, tasks;
  bool one_source = true, with_tasks = true;
  for (auto const& set : sets) {
    require(set.source->shape == all.source->shape && set.source->dtype == all.source->dtype,
            {"concatenate: '", set.source->name, "' and '", all.source->name,
             "' store rows of different shape or type"});
    one_source = one_source && set.source == all.source;
    with_tasks = with_tasks && set.tasks.defined();
    rows.push_back(set.rows);
    labels.push_back(set.labels);
    tasks.push_back(set.tasks);
  }
  all.labels = torch::cat(labels);
  all.tasks = with_tasks ? torch::cat(tasks) : Tensor{};
  if (one_source) {
    all.rows = torch::cat(rows);
    return all;
  }
  std::vector<Dataset> parts;  // one view of each source; rows are offset by what lies before
  std::vector<Tensor> source_labels;
  std::vector<std::int64_t> starts{0};
  for (std::size_t i = 0; i < sets.size(); ++i) {
    std::size_t k = 0;
    while (k < parts.size() && parts[k].source != sets[i].source) ++k;
    if (k == parts.size()) {
      parts.push_back(sets[i]);
      source_labels.push_back(sets[i].source->labels);
      starts.push_back(starts.back() + sets[i].source->size());
    }
    rows[i] = rows[i] + starts[k];
  }
  auto joined = std::make_shared<Source>(*all.source);
  joined->name = "union";
  joined->reads_on_device = false;  // which source a row is of is for the host to say
  joined->labels = torch::cat(source_labels);
  joined->read = [parts, starts](Tensor const& wanted, Tensor& out) {
    auto const flat = wanted.contiguous();
    auto const* row = flat.data_ptr<std::int64_t>();
    std::vector<std::vector<std::int64_t>> where(parts.size()), which(parts.size());
    for (std::int64_t i = 0; i < flat.numel(); ++i) {
      auto const after = std::upper_bound(starts.begin(), starts.end(), row[i]);
      require(row[i] >= 0 && after != starts.end(),
              {"row ", row[i], " of a union of ", starts.back(), " rows"});
      auto const k = static_cast<std::size_t>(after - starts.begin() - 1);
      where[k].push_back(i);
      which[k].push_back(row[i] - starts[k]);
    }
    for (std::size_t k = 0; k < parts.size(); ++k) {
      if (where[k].empty()) continue;
      auto shape = out.sizes().vec();
      shape[0] = static_cast<std::int64_t>(where[k].size());
      auto some = torch::empty(shape, out.options());
      auto const& source = *parts[k].source;
      auto const rows = torch::tensor(which[k]);
      source.read(source.reads_on_device ? rows.to(source.device) : rows, some);
      out.index_copy_(0, torch::tensor(where[k]).to(out.device()), some);
    }
  };
  all.source = joined;
  all.rows = torch::cat(rows);
  return all;
}

/// One step of a stream: what is learned together.
struct Experience {
  std::int64_t index = 0;               ///< position in the stream, from 0
  std::vector<std::int64_t> classes{};  ///< labels (network outputs) that occur in it
  std::int64_t task = -1;               ///< task id, -1 where the scenario gives none
  Dataset train{};
  Dataset test{};
  std::int64_t part_of = -1;  ///< number of the experience that this is a known part of, else -1
};

/// An experience from plain tensors: x [N, ...] of any type, y [N] integers. The network is given
/// the numbers of x as they are; for bytes of images, set `normalise.scale` of `train` and `test`
/// to 1 / 255. Give each experience of a stream its own `index`: to strategies, two of one index
/// are the same one, learned again.
inline Experience make_experience(Tensor const& x, Tensor const& y,
                                  std::vector<std::int64_t> classes = {}, std::int64_t index = 0,
                                  std::int64_t task = -1) {
  auto data = whole(resident(x, y));
  if (classes.empty()) {
    auto const present = std::get<0>(at::_unique(data.labels));
    for (std::int64_t i = 0; i < present.size(0); ++i) {
      classes.push_back(present[i].item<std::int64_t>());
    }
    std::sort(classes.begin(), classes.end());
  }
  if (task >= 0) data.tasks = torch::full_like(data.labels, task);
  return {.index = index, .classes = std::move(classes), .task = task, .train = data, .test = data};
}

/// Who knows what at test time (van de Ven, Tuytelaars, Tolias, Nature Machine Intelligence 2022).
enum class Scenario {
  task,    ///< the task id is given at test
  domain,  ///< the same labels in every experience
  classes  ///< all classes seen so far compete ("class" on the command line)
};

/// A sequence of experiences.
struct Stream {
  std::string name;
  Scenario scenario = Scenario::classes;
  std::int64_t outputs = 0;  ///< number of network outputs (per head, in the task scenario)
  std::vector<Experience> experiences;

  auto begin() const { return experiences.begin(); }
  auto end() const { return experiences.end(); }
  std::int64_t size() const { return static_cast<std::int64_t>(experiences.size()); }
  Experience const& operator[](std::int64_t e) const {
    return experiences.at(static_cast<std::size_t>(e));
  }
};

}  // namespace v0
}  // namespace pawl
