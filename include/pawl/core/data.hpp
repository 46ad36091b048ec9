#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace pawl {
inline namespace v0 {

/// A data set at rest: labels on the host, and rows that are read in the order asked. What lies
/// behind `read` (resident bytes, a mapped file, another source seen through a permutation) is its
/// own affair.
struct Source {
  std::string name;                    ///< for messages
  Tensor labels{};                     ///< [N] int64 on the host, as in the files
  std::vector<std::int64_t> shape;     ///< of one row
  torch::Dtype dtype = torch::kUInt8;  ///< of the stored rows
  torch::Device device = torch::kCPU;  ///< where `read` puts rows

  /// Fills `out` [n, shape...] with the rows [n] int64 (host) in the order asked.
  std::function<void(Tensor const& rows, Tensor& out)> read;

  std::int64_t size() const { return labels.numel(); }
};

/// Copies rows [n] int64 of `from` [N, ...] into `to` [n, ...], both contiguous on the host. One
/// thread: waking others costs more than the few hundred kilobytes of a batch.
inline void copy_rows(Tensor const& from, Tensor const& rows, Tensor const& to) {
  auto const held = from.size(0);
  auto const bytes = held == 0 ? 0 : from.nbytes() / static_cast<std::size_t>(held);
  auto const* source = static_cast<char const*>(from.data_ptr());
  auto* target = static_cast<char*>(to.data_ptr());
  auto const wanted = rows.contiguous();
  auto const* row = wanted.data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < wanted.numel(); ++i, target += bytes) {
    require(row[i] >= 0 && row[i] < held, "row ", row[i], " of a data set of ", held, " rows");
    std::memcpy(target, source + static_cast<std::size_t>(row[i]) * bytes, bytes);
  }
}

/// A source that is held in memory: x [N, ...] of any type on any device, y [N] int64.
inline std::shared_ptr<Source const> resident(Tensor x, Tensor y, std::string name = "tensors") {
  require(x.dim() >= 1 && y.dim() == 1 && x.size(0) == y.size(0), name, ": ", x.sizes(),
          " inputs and ", y.sizes(), " labels do not pair up; give x [N, ...] and y [N]");
  require(!y.is_floating_point(), name, ": labels must be integers, but are ", y.dtype());
  x = x.detach().contiguous();
  auto source = std::make_shared<Source>();
  source->name = std::move(name);
  source->labels = y.detach().to(torch::kCPU, torch::kInt64).contiguous();
  source->shape = x.sizes().slice(1).vec();
  source->dtype = x.scalar_type();
  source->device = x.device();
  source->read = [x](Tensor const& rows, Tensor& out) {
    if (x.is_cpu() && out.is_cpu() && out.is_contiguous() && out.scalar_type() == x.scalar_type()) {
      copy_rows(x, rows, out);
    } else {
      at::index_select_out(out, x, 0, rows.to(x.device()));
    }
  };
  return source;
}

/// How stored rows become inputs of a network: (row * scale - mean) / deviation, per channel
/// (dimension 1) where more than one value is given.
struct Normalise {
  double scale = 1;                 ///< 1/255 for bytes
  std::vector<double> mean{};       ///< empty: no shift
  std::vector<double> deviation{};  ///< empty: no division

  Tensor operator()(Tensor const& stored, torch::Dtype dtype) const {
    auto x = stored.to(dtype);
    if (scale != 1) x = x.data_ptr() == stored.data_ptr() ? x * scale : x.mul_(scale);
    if (mean.size() == 1 && deviation.size() == 1) return (x - mean[0]) / deviation[0];
    if (mean.empty()) return x;
    std::vector<std::int64_t> shape(static_cast<std::size_t>(x.dim()), 1);
    require(x.dim() >= 2 && x.size(1) == static_cast<std::int64_t>(mean.size()),
            "normalise: ", mean.size(), " means for inputs ", x.sizes(), "; give one per channel");
    shape[1] = x.size(1);
    auto const options = x.options().dtype(torch::kFloat64).device(torch::kCPU);
    auto const shift = torch::tensor(mean, options).view(shape).to(x.device(), dtype);
    auto const divisor = torch::tensor(deviation, options).view(shape).to(x.device(), dtype);
    return (x - shift) / divisor;
  }
};

/// Rows as a memory gives and takes them: stored inputs and columns with the same first dimension.
struct Rows {
  Tensor stored{};  ///< [n, ...] inputs as the source stores them (not normalised, not augmented)
  Tensor y{};       ///< [n] int64, on the device of the model
  Tensor labels{};  ///< [n] int64, the same on the host
  Tensor task{};    ///< [n] int64 task ids on the host; undefined where the scenario gives none
  Tensor logits{};  ///< [n, C] stored logits; undefined unless a strategy keeps them
  Tensor id{};  ///< [n] int64 on the host: row numbers in the source, or what the caller put there

  std::int64_t size() const { return y.defined() ? y.size(0) : 0; }

  Rows slice(std::int64_t begin, std::int64_t end) const {
    if (begin == 0 && end == size()) return *this;
    Rows part;
    for (auto const column : columns()) {
      if ((this->*column).defined()) part.*column = (this->*column).slice(0, begin, end);
    }
    return part;
  }

  /// The columns, for code that treats all alike.
  static constexpr std::array<Tensor Rows::*, 6> columns() {
    return {&Rows::stored, &Rows::y, &Rows::labels, &Rows::task, &Rows::logits, &Rows::id};
  }
};

/// A default row weight: the row counts 1/R in the supervised loss, R = number of such rows in the
/// step.
inline constexpr double default_weight = std::numeric_limits<double>::quiet_NaN();

/// Rows that one strategy appended to a batch.
struct Part {
  void const* owner = nullptr;  ///< the strategy; nullptr for the fresh rows
  std::int64_t begin = 0;       ///< first row in the batch
  std::int64_t size = 0;        ///< number of rows in this batch
  std::int64_t step_size = 0;   ///< number of rows of this part in the whole step, over all shards
  double weight = default_weight;  ///< absolute weight of each row in the supervised loss
  Rows rows{};                     ///< what was appended, with its columns
};

/// The rows of one step (or of one shard of it): fresh ones first, then what strategies appended.
struct Batch {
  Tensor x;       ///< [N, ...] network inputs; set when all strategies have extended the batch
  Tensor y{};     ///< [N] int64, on the device of the model
  Tensor task{};  ///< [N] int64 on the host, or undefined
  std::int64_t fresh = 0;   ///< number of fresh rows; they come first
  std::vector<Part> parts;  ///< parts[0] holds the fresh rows

  std::int64_t size() const { return parts.empty() ? 0 : parts.back().begin + parts.back().size; }

  /// Appends rows; `step_size` is their number in the whole step (over all shards), `weight` the
  /// absolute weight of each in the supervised loss (0: seen by the forward pass alone).
  void append(void const* owner, Rows rows, std::int64_t step_size,
              double weight = default_weight) {
    if (rows.size() == 0) return;
    parts.push_back({.owner = owner,
                     .begin = size(),
                     .size = rows.size(),
                     .step_size = step_size,
                     .weight = weight,
                     .rows = std::move(rows)});
  }

  /// The first, second, ... part that `owner` appended; nullptr when it appended none in this
  /// batch.
  Part const* part(void const* owner, std::int64_t which = 0) const {
    for (auto const& p : parts) {
      if (p.owner == owner && which-- == 0) return &p;
    }
    return nullptr;
  }
};

/// A view of a source: which rows, under which labels, and how they become inputs. Views of views
/// are flat.
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
    source->read(result.id, result.stored);
    if (source->device != device) result.stored = result.stored.to(device);
    result.y = result.labels.to(device);
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
            "concatenate: '", set.source->name, "' and '", all.source->name,
            "' store rows of different shape or type");
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
  joined->labels = torch::cat(source_labels);
  joined->read = [parts, starts](Tensor const& wanted, Tensor& out) {
    auto const flat = wanted.contiguous();
    auto const* row = flat.data_ptr<std::int64_t>();
    std::vector<std::vector<std::int64_t>> where(parts.size()), which(parts.size());
    for (std::int64_t i = 0; i < flat.numel(); ++i) {
      auto const after = std::upper_bound(starts.begin(), starts.end(), row[i]);
      require(row[i] >= 0 && after != starts.end(), "row ", row[i], " of a union of ",
              starts.back(), " rows");
      auto const k = static_cast<std::size_t>(after - starts.begin() - 1);
      where[k].push_back(i);
      which[k].push_back(row[i] - starts[k]);
    }
    for (std::size_t k = 0; k < parts.size(); ++k) {
      if (where[k].empty()) continue;
      auto shape = out.sizes().vec();
      shape[0] = static_cast<std::int64_t>(where[k].size());
      auto some = torch::empty(shape, out.options());
      parts[k].source->read(torch::tensor(which[k]), some);
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
};

/// An experience from plain tensors: x [N, ...] of any type, y [N] integers.
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

/// A labelled collection, as loaders return it.
struct TrainTest {
  std::string name;
  std::shared_ptr<Source const> train;
  std::shared_ptr<Source const> test;
  std::int64_t classes = 0;  ///< labels are 0 .. classes-1
  Normalise normalise;       ///< from stored rows to [0, 1]
};

}  // namespace v0
}  // namespace pawl
