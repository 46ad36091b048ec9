#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "../core/context.hpp"
#include "../core/init.hpp"
#include "../heads/cosine.hpp"
#include "../heads/growing.hpp"
#include "../heads/multi_head.hpp"

namespace pawl {
inline namespace v0 {

/// The last layer of a model.
enum class HeadKind {
  automatic,  ///< multi where the number of tasks is given, else linear
  linear,     ///< all classes from the start
  growing,    ///< classes as they are announced
  multi,      ///< one layer per task
  cosine      ///< growing, and compares directions alone
};

/// Describes the choice of the last layer, for the options of a model.
inline void describe_head(Options& o, HeadKind& head) {
  o("head", head, {"auto", "linear", "growing", "multi", "cosine"},
    "last layer; auto: multi where there are task ids, else linear");
}

/// A last layer of any kind.
struct OutputLayer {
  std::shared_ptr<nn::Module> module;
  std::function<Tensor(Tensor const&)> forward;  ///< features [N, d] -> logits [N, C]
};

/// Puts LibTorch's process-wide generator back as found when it goes out of scope: the constructors
/// of layers draw from it, though their values are replaced by ours.
struct ConstructionScope : NoiseScope {
  ConstructionScope() : NoiseScope(Generator(0)) {}
};

/// Makes the last layer over features [N, inputs]: `outputs` classes (per task for a multi-head;
/// growing ones start with none), for `tasks` tasks (0: added as they are announced). `init`: of
/// rows that are drawn here or later; a linear one is initialised with its model, and rows of a
/// cosine head have a direction alone. `bias`: of the linear kind.
inline OutputLayer make_output(HeadKind kind, std::int64_t inputs, std::int64_t outputs,
                               std::int64_t tasks, Seed seed, Init const& init, bool bias = true) {
  auto const of = [](auto holder) -> OutputLayer {
    return {holder.ptr(), [layer = holder.get()](Tensor const& x) { return layer->forward(x); }};
  };
  if (kind == HeadKind::automatic) kind = tasks > 0 ? HeadKind::multi : HeadKind::linear;
  if (kind == HeadKind::growing) return of(GrowingHead(inputs, 0, Seed{}, init));
  if (kind == HeadKind::cosine) return of(CosineHead(inputs));
  if (kind == HeadKind::multi) return of(MultiHead(inputs, outputs, tasks, seed, init));
  ConstructionScope scope;
  return of(nn::Linear(nn::LinearOptions(inputs, outputs).bias(bias)));
}

/// Throws unless a model was asked for rows and outputs that it can have.
inline void check_sizes(char const* model, std::vector<std::int64_t> const& input_shape,
                        std::int64_t outputs) {
  auto fits = !input_shape.empty() && outputs >= 1;
  for (auto const size : input_shape) fits = fits && size >= 1;
  require(fits, {model, ": rows of shape ", c10::IntArrayRef(input_shape), " and ", outputs,
                 " outputs were asked for; give positive sizes"});
}

}  // namespace v0
}  // namespace pawl
