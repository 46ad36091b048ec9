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

/// Reads an IDX file of bytes, plain or gzip: uint8 [d0, d1, ...]. The sizes in its header are
/// believed only when they account for every byte of the file.
inline Tensor read_idx(std::string const& file) {
  auto const bytes = read_bytes(file);
  auto const size = bytes.numel();
  require(size >= 4, {file, ": is no IDX file, it has only ", size, " bytes; fetch it again"});
  auto const* const head = bytes.data_ptr<std::uint8_t>();
  require(
      head[0] == 0 && head[1] == 0,
      {file,
       ": is no IDX file (its magic number does not begin with two zero bytes); fetch it again"});
  require(head[2] == 8, {file, ": holds IDX elements of type ", int{head[2]},
                         ", but only unsigned bytes (type 8) are read; convert the file"});
  auto const dimensions = std::int64_t{head[3]};
  auto const header = 4 + 4 * dimensions;
  require(dimensions >= 1 && size >= header,
          {file, ": its IDX header is truncated; fetch it again"});
  std::vector<std::int64_t> shape;
  std::int64_t expected = 1;
  for (std::int64_t d = 0; d < dimensions; ++d) {
    auto const* const word = head + 4 + 4 * d;
    shape.push_back(std::int64_t{word[0]} << 24 | word[1] << 16 | word[2] << 8 | word[3]);
    require(shape.back() > 0,
            {file, ": dimension ", d, " is 0, so it has no samples; fetch it again"});
    require(shape.back() <= (size - header) / expected,
            {file, ": is truncated, its header promises ", "more elements than its ", size - header,
             " bytes; fetch it again"});
    expected *= shape.back();
  }
  require(expected == size - header, {file, ": ", size - header - expected, " bytes follow the ",
                                      expected, " that its header promises; fetch it again"});
  return bytes.slice(0, header).view(shape);
}

/// Greyscale images and their labels from two IDX files: images stored as uint8 [N, 1, H, W],
/// labels 0 .. classes-1. Throws `Error` when the files do not belong together.
inline std::shared_ptr<Source const> load_idx(std::string const& images, std::string const& labels,
                                              std::int64_t classes, std::string name) {
  auto const x = read_idx(images);
  auto const y = read_idx(labels);
  require(x.dim() == 3,
          {images, ": has ", x.dim(),
           " dimensions, but images have 3 (samples, rows, columns); is it the image file?"});
  require(y.dim() == 1,
          {labels, ": has ", y.dim(), " dimensions, but labels have 1; is it the label file?"});
  require(x.size(0) == y.size(0), {images, ": has ", x.size(0), " images, but ", labels, " has ",
                                   y.size(0), " labels; fetch both again"});
  auto const largest = y.max().item<std::int64_t>();
  require(largest < classes, {labels, ": has the label ", largest, ", but labels are 0 .. ",
                              classes - 1, "; is it the label file of this data set?"});
  return resident(x.unsqueeze(1), y, std::move(name));
}

namespace detail {

/// One of the four files of a set of the MNIST family, in any of the folders and spellings.
inline std::string mnist_file(std::string const& root, std::vector<std::string> const& folders,
                              std::string const& stem, std::string const& kind,
                              std::string const& data_set) {
  std::vector<std::string> names;
  for (auto const& folder : folders) {
    for (auto const* const dot : {"-", "."}) {
      for (auto const* const packed : {"", ".gz"}) {
        names.push_back(folder + stem + dot + kind + packed);
      }
    }
  }
  return find_file(root, names, data_set);
}

inline TrainTest load_mnist_family(std::string const& root, std::vector<std::string> const& folders,
                                   std::string const& data_set) {
  auto const part = [&](std::string const& prefix, std::string const& name) {
    auto const images = mnist_file(root, folders, prefix + "-images", "idx3-ubyte", data_set);
    auto source = load_idx(
        images, mnist_file(root, folders, prefix + "-labels", "idx1-ubyte", data_set), 10, name);
    require(source->shape == std::vector<std::int64_t>{1, 28, 28},
            {images, ": has images of ", source->shape[1], "x", source->shape[2], " pixels, but ",
             data_set, " has 28x28; fetch it again"});
    return source;
  };
  return {.name = data_set,
          .train = part("train", data_set + " train"),
          .test = part("t10k", data_set + " test"),
          .classes = 10,
          .normalise = {.scale = 1.0 / 255, .mean = {}, .deviation = {}}};
}

}  // namespace detail

/// MNIST (LeCun, Cortes, Burges): 60,000 + 10,000 digits, uint8 [N, 1, 28, 28]. Looks for the four
/// official files, plain or .gz, in `folder`, `folder/mnist` and `folder/MNIST/raw`.
inline TrainTest load_mnist(std::string const& folder) {
  return detail::load_mnist_family(folder, {"mnist/", "MNIST/raw/", ""}, "mnist");
}

/// Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 60,000 + 10,000 pieces of clothing, uint8 [N, 1,
/// 28, 28]. The files have the names of MNIST, so they are looked for in `folder/fashion_mnist` and
/// `folder/FashionMNIST/raw`; in `folder` itself only when its own name says fashion.
inline TrainTest load_fashion_mnist(std::string const& folder) {
  std::vector<std::string> folders{"fashion_mnist/", "FashionMNIST/raw/"};
  if (folder.find("ashion") != std::string::npos) {
    folders.push_back("");
  }
  return detail::load_mnist_family(folder, folders, "fashion_mnist");
}

}  // namespace v0
}  // namespace pawl
