#pragma once

#include <cmath>
#include <cstdint>
#include <locale>
#include <ostream>
#include <sstream>
#include <string>

#include "../core/checkpoint.hpp"
#include "../core/context.hpp"
#include "../core/options.hpp"

namespace pawl {
inline namespace v0 {

/// One JSON object per line and step: experience, epoch, step, loss, and the value of every
/// penalty, for plots and checks. The second penalty of one name is called name2, and numbers that
/// are not finite are null.
struct Jsonl {
  std::ostream& out;
  std::int64_t every = 1;  ///< steps per line, from the first step on

  static constexpr bool wants_penalties = true;
  static constexpr bool only_losses = true;

  void step(Context const& c) {
    require(every >= 1, {"jsonl: every is ", every, "; give 1 or more steps per line"});
    if ((c.step - 1) % every != 0) return;
    std::ostringstream line;
    line.imbue(std::locale::classic());
    line << "{\"experience\":" << c.index << ",\"epoch\":" << c.epoch << ",\"step\":" << c.step - 1
         << ",\"loss\":" << number(c.task_loss) << ",\"penalties\":{";
    char const* separator = "";
    for (auto const& penalty : c.penalties) {
      int number_of_name = 1;
      for (auto const* before = c.penalties.data(); before != &penalty; ++before) {
        if (before->first == penalty.first) ++number_of_name;
      }
      auto key = penalty.first;
      if (number_of_name > 1) key += std::to_string(number_of_name);
      line << separator << detail::json_string(key) << ":" << number(penalty.second);
      separator = ",";
    }
    line << "}}\n";
    out << line.str();
  }

 private:
  static std::string number(Tensor const& value) {
    auto const v = value.item<double>();
    if (!std::isfinite(v)) return "null";
    return number_text(v);
  }
};

}  // namespace v0
}  // namespace pawl
