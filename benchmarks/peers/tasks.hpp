#pragma once

// The streams of the comparison, for both sides the same rows.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "loop.hpp"

#include <pawl/data/cifar.hpp>
#include <pawl/data/idx.hpp>
#include <pawl/stream/permute_pixels.hpp>
#include <pawl/stream/split_classes.hpp>

namespace peers {

/// A stream as pawl reads it, and its rows as the loops by hand do.
struct Task {
  pawl::Stream stream;
  std::vector<Rows> experiences;
  Tensor test_x, test_y;  ///< of all experiences
};

inline constexpr std::int64_t test_rows = 500;  ///< of each experience

inline void keep_first(pawl::Dataset& data, std::int64_t rows) {
  data = data.select(torch::arange(std::min(rows, data.size())));
}

/// At most `rows` training rows of each experience.
inline Task task_of(pawl::Stream stream, std::int64_t rows) {
  Task task;
  std::vector<Tensor> x, y;
  for (auto& experience : stream.experiences) {
    keep_first(experience.train, rows);
    keep_first(experience.test, test_rows);
    auto const train = experience.train.read(torch::arange(experience.train.size()));
    auto const test = experience.test.read(torch::arange(experience.test.size()));
    task.experiences.push_back({train.stored, train.y});
    x.push_back(test.stored), y.push_back(test.y);
  }
  task.stream = std::move(stream);
  task.test_x = torch::cat(x), task.test_y = torch::cat(y);
  return task;
}

inline bool has_cifar10(std::filesystem::path const& data) {
  return std::filesystem::exists(data / "cifar-10-batches-bin" / "data_batch_1.bin") ||
         std::filesystem::exists(data / "data_batch_1.bin");
}

/// How many training rows of each experience are learned.
struct Limits {
  std::int64_t rows, images;  ///< of MNIST, of CIFAR-10
};

/// Tasks by name, each loaded when first asked for.
class Tasks {
 public:
  Tasks(std::filesystem::path data, Limits limits) : data_(std::move(data)), limits_(limits) {}

  std::filesystem::path const& data() const { return data_; }

  Task const& operator[](std::string const& name) {
    auto const known = tasks_.find(name);
    if (known != tasks_.end()) return known->second;
    return tasks_.emplace(name, load(name)).first->second;
  }

 private:
  Task load(std::string const& name) const {
    if (name == "split_cifar10") {
      auto const cifar = pawl::load_cifar10(data_);
      return task_of(pawl::split_classes(cifar, {.experiences = 5}), limits_.images);
    }
    auto const mnist = pawl::load_mnist(data_);
    return task_of(name == "permuted_mnist" ? pawl::permute_pixels(mnist, {.experiences = 5})
                                            : pawl::split_classes(mnist, {.experiences = 5}),
                   limits_.rows);
  }

  std::filesystem::path data_;
  Limits limits_;
  std::map<std::string, Task> tasks_;
};

}  // namespace peers
