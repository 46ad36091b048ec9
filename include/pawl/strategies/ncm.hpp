#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../heads/nearest_mean.hpp"
#include "../memory/catalogue.hpp"
#include "../memory/rehearsal.hpp"

namespace pawl {
inline namespace v0 {

/// Nearest class mean: training goes on as it is, but prediction asks which class has the closest
/// mean feature (Mensink et al., TPAMI 2013).
///   mu_c = mean of phi over class c;   score_c = -||phi(x) - mu_c||^2, -inf for classes never seen
/// Means come from the data of each experience when it ends (exact for frozen features; they go
/// stale as the features move), or from a memory, taken anew when the weights have moved. Features
/// are computed in eval mode. Needs a model with `features`; task ids are not used.
struct Ncm {
  enum class Source { data, memory };

  AnyMemory memory = Reservoir{};  ///< what keeps rows, of source = memory
  Source source = Source::data;    ///< means of the experience's data at its end, or of the memory
  bool normalise = false;          ///< features to unit norm first
  bool cosine = false;             ///< unit features and unit means

  static constexpr char const* name = "ncm";
  static constexpr char const* about = "nearest class mean (Mensink et al., TPAMI 2013)";
  static constexpr bool plans_ahead = true;

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows, of source = memory");
    o("source", source, {"data", "memory"},
      "means of each experience's data at its end, or of the memory at prediction");
    o("normalise", normalise, "features to unit norm first; means are not normalised again");
    o("cosine", cosine, "unit features and unit means");
  }

  bool capturable() const { return memory.planned(); }

  void begin(Context& c, Experience const&) {
    require(static_cast<bool>(c.model.features),
            "ncm needs the features of the model; give it a member  Tensor features(Tensor x)");
    require(!c.model.per_task(),
            "ncm compares all classes and cannot use a head per task; use a linear head");
    to_inputs = c.train.normalise;
  }

  void after_step(Context& c) {
    if (source == Source::memory && last_pass(c)) remember(c, memory, c.fresh, "memory.ncm");
  }

  void end(Context& c, Experience const& experience) {
    if (source == Source::data) {
      for_each_chunk(experience.train, c.arena.device(), [&](Rows const& rows) { add(c, rows); });
    }
  }

  /// Scores [N, C] float64 of inputs x [N, ...]; C is the highest label seen + 1.
  Tensor scores(Context& c, Tensor x) {
    if (source == Source::memory) refresh(c);
    require(!means.empty(), {"ncm has no class means yet; ",
                             source == Source::data ? "finish an experience before predicting"
                                                    : "train at least one step before predicting, "
                                                      "with a memory that keeps rows"});
    return means.scores(features(c, x));
  }

  void state(Archive& a) {
    a.part("memory", memory);
    a.part("means", means);
    a("taken_at", taken_at);
    a("weights_then", weights_then);
    a("scale", to_inputs.scale);
    numbers(a, "mean", to_inputs.mean);
    numbers(a, "deviation", to_inputs.deviation);
  }

  // State: written by the hooks.
  NearestMean means{};
  std::int64_t taken_at = -1;  ///< step of the run, of means of the memory
  double weights_then = 0;     ///< sum of the weights then; tells a roll-back
  Normalise to_inputs{};       ///< of the data; a learner that was loaded has no data yet

 private:
  static void numbers(Archive& a, std::string const& name, std::vector<double>& values) {
    auto tensor = torch::tensor(values, torch::kFloat64);
    a(name, tensor);
    if (!a.loading()) return;
    tensor = tensor.cpu().contiguous();
    values.assign(tensor.data_ptr<double>(), tensor.data_ptr<double>() + tensor.numel());
  }

  static Tensor features(Context& c, Tensor const& x) {
    torch::NoGradGuard no_grad;
    ModeScope mode(*c.model.module, false);
    auto const by = c.fast_layers();
    return c.model.features(x);
  }

  void add(Context& c, Rows const& rows) {
    means.normalise = normalise, means.cosine = cosine;
    auto const x = to_inputs(rows.stored.to(c.arena.device()), c.arena.dtype());
    means.add(features(c, x), rows.labels);
  }

  void refresh(Context& c) {
    auto const sum = c.weights().sum(torch::kFloat64).item<double>();
    if ((taken_at == c.total_steps && weights_then == sum) || memory.empty()) return;
    means.clear();
    auto const rows = all_rows(c, memory, c.run_generator("draw.ncm"));
    constexpr std::int64_t chunk = 1000;
    for (std::int64_t begin = 0; begin < rows.size(); begin += chunk) {
      add(c, rows.slice(begin, std::min(begin + chunk, rows.size())));
    }
    taken_at = c.total_steps, weights_then = sum;
  }
};

}  // namespace v0
}  // namespace pawl
