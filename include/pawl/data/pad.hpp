#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"

namespace pawl {
inline namespace v0 {

/// All rows of a source as it stores them: [N, shape...].
inline Tensor read_all(Source const& source) {
  auto shape = source.shape;
  shape.insert(shape.begin(), source.size());
  auto const type = torch::TensorOptions().dtype(source.dtype).device(source.device);
  auto out = torch::empty(shape, type);
  auto const rows = torch::arange(source.size(), torch::kInt64);
  source.read(source.reads_on_device ? rows.to(source.device) : rows, out);
  return out;
}

/// Zeros around stored images [N, C, H, W], `pixels` on each side (28x28 with 2 is 32x32). They are
/// there before normalising, so the border is normalised too.
inline TrainTest pad(TrainTest data, std::int64_t pixels) {
  require(pixels >= 0, {"pad: ", pixels, " pixels; give 0 or more"});
  if (pixels == 0) return data;
  for (auto const part : {&TrainTest::train, &TrainTest::test}) {
    auto const& source = *(data.*part);
    require(source.shape.size() == 3,
            {"pad: '", source.name, "' does not store images [C, H, W], its ", "rows have ",
             source.shape.size(), " dimensions; leave padding out"});
    auto const padded =
        torch::constant_pad_nd(read_all(source), {pixels, pixels, pixels, pixels}, 0);
    data.*part = resident(padded, source.labels, source.name);
  }
  return data;
}

/// The same data with its rows, as they are stored (bytes), on a device: steps read them there, and
/// can be captured.
inline TrainTest on_device(TrainTest data, torch::Device device) {
  for (auto const part : {&TrainTest::train, &TrainTest::test}) {
    auto const& source = *(data.*part);
    if (source.device == device) continue;
    data.*part = resident(read_all(source).to(device), source.labels, source.name);
  }
  return data;
}

/// The same data with only the first `rows` training samples (0: all). The test set stays whole.
inline TrainTest first(TrainTest data, std::int64_t rows) {
  require(rows >= 0 && rows <= data.train->size(),
          {"first: ", rows, " of the ", data.train->size(), " training rows of '", data.name,
           "'; give 0 (all) to ", data.train->size()});
  if (rows == 0 || rows == data.train->size()) return data;
  auto fewer = std::make_shared<Source>(*data.train);
  fewer->labels = fewer->labels.slice(0, 0, rows);
  data.train = std::move(fewer);
  return data;
}

/// The same data, shifted and divided after scaling to [0, 1]: one mean and deviation per channel,
/// or one for all.
inline TrainTest normalised(TrainTest data, std::vector<double> mean,
                            std::vector<double> deviation) {
  auto const channels = data.train->shape.empty() ? 1 : data.train->shape.front();
  auto const n = static_cast<std::int64_t>(mean.size());
  require(mean.size() == deviation.size() && (n == 1 || n == channels),
          {"normalised: ", n, " means and ", deviation.size(), " deviations for '", data.name,
           "' with ", channels, " channels; give one of each, or one per channel"});
  for (auto const d : deviation) {
    require(d > 0, {"normalised: a deviation is ", d, "; deviations must be positive"});
  }
  data.normalise.mean = std::move(mean);
  data.normalise.deviation = std::move(deviation);
  return data;
}

}  // namespace v0
}  // namespace pawl
