#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/files.hpp"
#include "file.hpp"
#include "find.hpp"

namespace pawl {
inline namespace v0 {

namespace detail {

/// Values of a digits file, line by line: uint8 [N, 65], 64 pixels and the label.
inline Tensor digit_lines(std::string const& path) {
  auto const bytes = read_bytes(path);
  auto const* at = reinterpret_cast<char const*>(bytes.data_ptr());
  auto const* const end = at + bytes.numel();
  std::vector<std::int64_t> values;
  for (std::int64_t line = 1; at != end; ++line) {
    for (int column = 1; column <= 65; ++column) {
      auto const* const begin = at;
      auto const most = column == 65 ? 9 : 16;
      auto value = 0;
      for (; at != end && *at >= '0' && *at <= '9' && value <= most; ++at) {
        value = 10 * value + (*at - '0');
      }
      require(at != begin && value <= most,
              {path, ": line ", line, ", value ", column, " must be an integer 0 .. ", most,
               "; fetch the file again"});
      values.push_back(value);
      auto const last = column == 65;
      if (last && at != end && *at == '\r') ++at;
      auto const separated = at != end && *at == (last ? '\n' : ',');
      require(separated || (last && at == end),
              {path, ": line ", line, " must have 65 values ",
               "with commas between them, but is wrong after value ", column,
               "; fetch the file again"});
      if (separated) ++at;
    }
  }
  require(!values.empty(), {path, ": is empty; fetch the file again"});
  return torch::tensor(values, torch::kUInt8).view({-1, 65});
}

}  // namespace detail

/// Handwritten digits 8x8 (Alpaydin, Kaynak, 1998; UCI, CC BY 4.0): 1,797 images with values 0 ..
/// 16, stored as uint8 [N, 1, 8, 8]. The set has no split of its own here: the 5th, 10th, ...
/// sample of each class in file order is a test sample (1,442 train, 355 test).
///
/// `path` is the file, or the folder with `digits/digits.csv.gz` or `digits.csv.gz`.
inline TrainTest load_digits(std::string path) {
  if (!is_file(path)) {
    path = find_file(path,
                     {"digits/digits.csv.gz", "digits.csv.gz", "digits/digits.csv", "digits.csv"},
                     "digits");
  }
  auto const lines = detail::digit_lines(path);
  auto const y = lines.select(1, 64).to(torch::kInt64).contiguous();
  auto const* const label = y.data_ptr<std::int64_t>();
  std::array<std::int64_t, 10> seen{};
  std::vector<std::int64_t> train, test;
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    auto const number = ++seen[static_cast<std::size_t>(label[i])];
    (number % 5 == 0 ? test : train).push_back(i);
  }
  require(
      !train.empty() && !test.empty(),
      {path, ": ", y.numel(),
       " samples are too few for a training and a test set (every 5th of a class); fetch the file "
       "again"});
  auto const part = [&](std::vector<std::int64_t> const& rows, char const* name) {
    auto const chosen = torch::tensor(rows, torch::kInt64);
    auto const x = lines.slice(1, 0, 64).index_select(0, chosen).view({-1, 1, 8, 8});
    return resident(x, y.index_select(0, chosen), name);
  };
  return {.name = "digits",
          .train = part(train, "digits train"),
          .test = part(test, "digits test"),
          .classes = 10,
          .normalise = {.scale = 1.0 / 16, .mean = {}, .deviation = {}}};
}

}  // namespace v0
}  // namespace pawl
