#pragma once

#include <cstdint>

#include "../core/data.hpp"
#include "../core/options.hpp"

namespace pawl {
inline namespace v0 {

/// Which network output a label becomes.
enum class LabelRule {
  automatic,  ///< the usual one of the scenario
  raw,        ///< the label of the files
  by_order,   ///< the position of the class in the order of the stream
  within      ///< 0 .. k-1 within each experience
};

namespace detail {

inline void describe_scenario(Options& o, Scenario& scenario, LabelRule& labels) {
  o("scenario", scenario, {"task", "domain", "class"},
    "what is known at test: the task id; nothing, labels are shared; nothing, all classes compete");
  o("labels", labels, {"automatic", "raw", "by_order", "within"},
    "network output of a label: that of the files, its class's position in the order, or 0 .. k-1 "
    "within each experience");
}

}  // namespace detail

}  // namespace v0
}  // namespace pawl
