#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "file.hpp"
#include "find.hpp"

namespace pawl {
inline namespace v0 {

/// Which of the two labels of CIFAR-100 is learned.
enum class CifarLabels {
  fine,   ///< 100 classes
  coarse  ///< 20 superclasses
};

namespace detail {

/// A CIFAR set in its binary layout: rows of label bytes, then 3 x 32 x 32 bytes.
struct CifarLayout {
  std::string data_set;
  std::string folder;                ///< as the official archive names it
  std::vector<std::int64_t> ranges;  ///< number of classes of each label byte
  std::int64_t label = 0;            ///< which label byte is learned
};

/// The rows of one file: uint8 [N, label bytes + 3072], labels checked.
inline Tensor cifar_rows(std::string const& file, CifarLayout const& layout) {
  auto const width = static_cast<std::int64_t>(layout.ranges.size()) + 3 * 32 * 32;
  auto const bytes = read_bytes(file);
  require(bytes.numel() > 0 && bytes.numel() % width == 0,
          {file, ": has ", bytes.numel(), " bytes, which is no positive multiple of the row size ",
           width, "; it is truncated or no ", layout.data_set, " file, fetch it again"});
  auto rows = bytes.view({-1, width});
  for (std::size_t b = 0; b < layout.ranges.size(); ++b) {
    auto const largest = rows.select(1, static_cast<std::int64_t>(b)).max().item<std::int64_t>();
    require(largest < layout.ranges[b],
            {file, ": has the label ", largest, ", but labels are 0 .. ", layout.ranges[b] - 1,
             "; is it a ", layout.data_set, " file in the binary version?"});
  }
  return rows;
}

inline std::shared_ptr<Source const> cifar_source(std::string const& root,
                                                  std::vector<std::string> const& files,
                                                  CifarLayout const& layout, std::string name) {
  std::vector<Tensor> pixels, labels;
  for (auto const& file : files) {
    auto const path = find_file(root, {layout.folder + "/" + file, file}, layout.data_set);
    auto const rows = cifar_rows(path, layout);
    require(labels.empty() || rows.size(0) == labels.front().size(0),
            {path, ": has ", rows.size(0), " rows but ", files.front(), " has ",
             labels.empty() ? 0 : labels.front().size(0),
             "; one of them is truncated, fetch it again"});
    pixels.push_back(rows.slice(1, static_cast<std::int64_t>(layout.ranges.size())));
    labels.push_back(rows.select(1, layout.label));
  }
  return resident(torch::cat(pixels).view({-1, 3, 32, 32}), torch::cat(labels), std::move(name));
}

}  // namespace detail

/// CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images, uint8 [N, 3, 32, 32], red, green,
/// blue. Reads the binary version: data_batch_1..5.bin and test_batch.bin in `folder` or in
/// `folder/cifar-10-batches-bin`. Files with fewer rows than the official ones are read too, as
/// long as the five have the same number.
inline TrainTest load_cifar10(std::string const& folder) {
  detail::CifarLayout const layout{
      .data_set = "cifar10", .folder = "cifar-10-batches-bin", .ranges = {10}};
  std::vector<std::string> train;
  for (auto const* const number : {"1", "2", "3", "4", "5"}) {
    train.push_back(std::string("data_batch_") + number + ".bin");
  }
  return {.name = "cifar10",
          .train = detail::cifar_source(folder, train, layout, "cifar10 train"),
          .test = detail::cifar_source(folder, {"test_batch.bin"}, layout, "cifar10 test"),
          .classes = 10,
          .normalise = {.scale = 1.0 / 255, .mean = {}, .deviation = {}}};
}

/// CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour images, uint8 [N, 3, 32, 32], red, green,
/// blue. Reads the binary version: train.bin and test.bin in `folder` or in
/// `folder/cifar-100-binary`.
inline TrainTest load_cifar100(std::string const& folder, CifarLabels labels = CifarLabels::fine) {
  auto const fine = labels == CifarLabels::fine;
  detail::CifarLayout const layout{.data_set = "cifar100",
                                   .folder = "cifar-100-binary",
                                   .ranges = {20, 100},
                                   .label = fine ? 1 : 0};
  return {.name = "cifar100",
          .train = detail::cifar_source(folder, {"train.bin"}, layout, "cifar100 train"),
          .test = detail::cifar_source(folder, {"test.bin"}, layout, "cifar100 test"),
          .classes = fine ? 100 : 20,
          .normalise = {.scale = 1.0 / 255, .mean = {}, .deviation = {}}};
}

}  // namespace v0
}  // namespace pawl
