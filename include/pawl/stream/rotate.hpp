#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../core/data.hpp"
#include "../core/error.hpp"
#include "../core/options.hpp"
#include "../core/random.hpp"
#include "../data/pad.hpp"
#include "../data/rotate_images.hpp"
#include "domains.hpp"
#include "gather.hpp"
#include "label_rule.hpp"

namespace pawl {
inline namespace v0 {

/// Which angles the experiences have.
enum class Angles {
  linear,   ///< low + e * (high - low) / T
  uniform,  ///< one draw per experience from [low, high)
  sliced    ///< one draw from the e-th of T equal slices of [low, high), as in the code of GEM
};

/// How `rotate` makes its experiences. Angles dominate the spread of results (about 8 points of
/// plain SGD): compare only under the same angles.
struct Rotate {
  std::int64_t experiences = 10;   ///< number of angles, T
  Angles angles = Angles::linear;  ///< linear | uniform | sliced
  std::vector<double>
      angle_list{};   ///< explicit angles in degrees; replaces all that says which angles
  double low = 0;     ///< smallest angle, degrees
  double high = 180;  ///< largest angle (excluded), degrees
  Interpolation interpolation = Interpolation::bilinear;  ///< bilinear | nearest
  Scenario scenario = Scenario::domain;                   ///< task | domain | class
  LabelRule labels = LabelRule::automatic;  ///< class: label + C * e; domain and task: raw

  void describe(Options& o) {
    o("experiences", experiences, at_least(1), "number of angles");
    o("angles", angles, {"linear", "uniform", "sliced"},
      "evenly spaced, one uniform draw per experience, or one from the e-th of as many equal "
      "slices");
    o("angle_list", angle_list, {},
      "explicit angles, degrees; replaces experiences, angles, low and high");
    o("low", low, {}, "smallest angle, degrees");
    o("high", high, {}, "largest angle (excluded), degrees");
    o("interpolation", interpolation, {"bilinear", "nearest"}, "what a rotated pixel is made of");
    detail::describe_scenario(o, scenario, labels);
  }
};

/// The angle of each experience in degrees. A drawn angle depends on seed and experience alone.
inline std::vector<double> rotation_angles(Rotate const& options, Seed seed) {
  if (!options.angle_list.empty()) return options.angle_list;
  require(options.low <= options.high,
          {"rotate: low = ", options.low, " is above high = ", options.high, "; swap them"});
  auto const begin_of = [&](std::int64_t e) {
    auto const share = static_cast<double>(e) / static_cast<double>(options.experiences);
    return options.low + share * (options.high - options.low);
  };
  std::vector<double> angles;
  for (std::int64_t e = 0; e < options.experiences; ++e) {
    auto draw = seed.generator("stream", e);
    switch (options.angles) {
      case Angles::linear:
        angles.push_back(begin_of(e));
        break;
      case Angles::uniform:
        angles.push_back(draw.uniform(options.low, options.high));
        break;
      case Angles::sliced:
        angles.push_back(draw.uniform(begin_of(e), begin_of(e + 1)));
        break;
    }
  }
  return angles;
}

/// A source [C, H, W] seen under an angle. With `nearest` pixels are picked when rows are read;
/// with `bilinear` the whole source is rotated once, when its first row is read, and kept (as many
/// bytes as the source).
inline std::shared_ptr<Source const> rotated(std::shared_ptr<Source const> inner, double degrees,
                                             Interpolation interpolation) {
  require(inner->shape.size() == 3,
          {"rotate: '", inner->name, "' does not store images [C, H, W], its ", "rows have ",
           inner->shape.size(), " dimensions"});
  auto name = text_of({inner->name, ", ", degrees, " degrees"});
  if (interpolation == Interpolation::nearest) {
    auto const& shape = inner->shape;
    return gathered(inner, detail::nearest_table(shape[0], shape[1], shape[2], degrees), name);
  }
  struct Turned {
    std::mutex mutex;
    Tensor images;
  };
  auto turned = std::make_shared<Turned>();
  auto source = std::make_shared<Source>(*inner);
  source->name = std::move(name);
  source->reads_on_device = false;
  source->read = [inner, degrees, turned](Tensor const& rows, Tensor& out) {
    {
      std::lock_guard<std::mutex> const alone(turned->mutex);
      if (!turned->images.defined()) turned->images = rotate(read_all(*inner), degrees);
    }
    at::index_select_out(out, turned->images, 0, rows.to(turned->images.device()));
  };
  return source;
}

/// A stream in which experience e sees all images under one angle (Lopez-Paz, Ranzato, NeurIPS
/// 2017), train and test alike.
inline Stream rotate(TrainTest const& data, Rotate options = {}, Seed seed = {}) {
  auto const angles = rotation_angles(options, seed);
  auto const view = [&](std::int64_t e, std::shared_ptr<Source const> const& source) {
    return rotated(source, angles[static_cast<std::size_t>(e)], options.interpolation);
  };
  auto const count =
      options.angle_list.empty() ? options.experiences : static_cast<std::int64_t>(angles.size());
  return domains(data, count, options.scenario, options.labels, "rotated_" + data.name, view);
}

}  // namespace v0
}  // namespace pawl
