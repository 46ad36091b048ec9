#pragma once

#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "../core/data.hpp"
#include "../core/options.hpp"
#include "../core/random.hpp"
#include "domains.hpp"
#include "gather.hpp"
#include "label_rule.hpp"

namespace pawl {
inline namespace v0 {

/// How `permute_pixels` makes its experiences.
struct PermutePixels {
  std::int64_t experiences = 10;            ///< number of permutations, T
  bool identity_first = false;              ///< whether experience 0 keeps the image as it is
  Scenario scenario = Scenario::domain;     ///< task | domain | class
  LabelRule labels = LabelRule::automatic;  ///< class: label + C * e; domain and task: raw

  void describe(Options& o) {
    o("experiences", experiences, at_least(1), "number of permutations");
    o("identity_first", identity_first, "experience 0 shows the images as they are");
    detail::describe_scenario(o, scenario, labels);
  }
};

/// The permutation of experience e: output pixel j is input pixel pi[j]. Depends on seed and e
/// alone.
inline std::vector<std::int64_t> pixel_permutation(std::int64_t pixels, std::int64_t e, Seed seed) {
  return seed.generator("stream", e).permutation(pixels);
}

/// A stream in which experience e sees every image through a fixed random permutation of its
/// elements (Goodfellow et al., 2013; Kirkpatrick et al., PNAS 2017), train and test alike:
///   x_e[j] = x[pi_e[j]]   over the flattened stored row
/// Pad before permuting: 28x28 and 32x32 are different streams. Rows are permuted when they are
/// read.
inline Stream permute_pixels(TrainTest const& data, PermutePixels options = {}, Seed seed = {}) {
  require(data.normalise.mean.size() <= 1,
          {"permute_pixels: '", data.name,
           "' has a mean per channel, but a permutation moves elements between channels; normalise "
           "with one mean and deviation"});
  std::int64_t width = 1;
  for (auto const n : data.train->shape) width *= n;
  auto const view = [&](std::int64_t e, std::shared_ptr<Source const> const& source) {
    if (e == 0 && options.identity_first) return source;
    return gathered(source, pixel_permutation(width, e, seed),
                    text_of({source->name, ", permutation ", e}));
  };
  return domains(data, options.experiences, options.scenario, options.labels,
                 "permuted_" + data.name, view);
}

}  // namespace v0
}  // namespace pawl
