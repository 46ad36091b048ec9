#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// A mistake that the user can mend. The text says what is wrong, where, and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The loss is no longer finite. Nothing of the failed step was applied to the weights, but buffers
/// (BatchNorm statistics) have seen its batch: go back to a snapshot or a checkpoint.
class Diverged : public Error {
 public:
  Diverged(std::string const& text, std::int64_t experience, std::int64_t step, double task_loss,
           std::vector<std::pair<std::string, double>> penalties)
      : Error(text),
        experience(experience),
        step(step),
        task_loss(task_loss),
        penalties(std::move(penalties)) {}

  std::int64_t experience;                                ///< index of the experience
  std::int64_t step;                                      ///< step within the experience, from 0
  double task_loss;                                       ///< supervised loss of the step
  std::vector<std::pair<std::string, double>> penalties;  ///< strategy and value
};

/// Throws `Error` with the parts written one after another.
template <class... Parts>
[[noreturn]] void fail(Parts const&... parts) {
  throw Error(c10::str("pawl: ", parts...));
}

/// Throws `Error` unless `condition` holds.
template <class... Parts>
void require(bool condition, Parts const&... parts) {
  if (!condition) [[unlikely]]
    fail(parts...);
}

/// The name among `names` that is closest to `wrong` (Levenshtein distance); empty when none is
/// near.
inline std::string nearest_name(std::string_view wrong, std::vector<std::string> const& names) {
  std::string best;
  std::size_t best_distance = wrong.size() / 2 + 2;
  for (auto const& name : names) {
    std::vector<std::size_t> row(name.size() + 1);
    for (std::size_t j = 0; j <= name.size(); ++j) row[j] = j;
    for (std::size_t i = 1; i <= wrong.size(); ++i) {
      std::size_t diagonal = row[0];
      row[0] = i;
      for (std::size_t j = 1; j <= name.size(); ++j) {
        auto const above = row[j];
        row[j] = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (wrong[i - 1] != name[j - 1])});
        diagonal = above;
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = name;
    }
  }
  return best;
}

/// "; did you mean 'x'?" or the list of what there is, for messages about a wrong name.
inline std::string suggestion(std::string_view wrong, std::vector<std::string> const& names) {
  if (auto const near = nearest_name(wrong, names); !near.empty()) {
    return c10::str("; did you mean '", near, "'?");
  }
  std::string all = "; there is:";
  for (auto const& name : names) all += " " + name;
  return all;
}

}  // namespace v0
}  // namespace pawl
