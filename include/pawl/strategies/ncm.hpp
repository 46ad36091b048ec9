#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "../core/context.hpp"
#include "../memory/catalogue.hpp"
#include "../memory/tasks.hpp"

namespace pawl {
inline namespace v0 {

/// Nearest class mean: predict the class whose mean feature is closest (Mensink et al., TPAMI
/// 2013).
///   mu_c = mean of phi over class c;   score_c = -||phi(x) - mu_c||^2, -inf for classes never seen
/// Means come from the data of each experience when it ends (they go stale as the features move),
/// or from a memory, anew whenever the weights have moved.
struct Ncm {
  enum class Source { data, memory };

  AnyMemory memory = Reservoir{};
  Source source = Source::data;
  bool normalise = false;
  bool cosine = false;

  static constexpr char const* name = "ncm";
  static constexpr char const* about = "nearest class mean (Mensink et al., TPAMI 2013)";

  void describe(Options& o) {
    describe_memory(o, memory, "what keeps rows, of source = memory");
    o("source", source, {"data", "memory"},
      "means of each experience's data at its end, or of the memory at prediction");
    o("normalise", normalise, "features to unit norm first; means are not normalised again");
    o("cosine", cosine, "unit features and unit means");
  }

  void begin(Context& c, Experience const&) {
    require(static_cast<bool>(c.model.features),
            "ncm needs the features of the model; give it a member  Tensor features(Tensor x)");
    require(!c.model.per_task(),
            "ncm compares all classes and cannot use a head per task; use a linear head");
  }

  void after_step(Context& c) {
    if (source == Source::memory && c.pass == 0) {
      memory.insert(with_tasks(c, c.fresh), c.run_generator("memory.ncm"));
    }
  }

  void end(Context& c, Experience const& experience) {
    if (source == Source::data) {
      auto const& data = experience.train;
      for (std::int64_t begin = 0; begin < data.size(); begin += chunk) {
        auto const end = std::min(begin + chunk, data.size());
        add(c, data.read(torch::arange(begin, end, torch::kInt64), c.arena.device()));
      }
    }
  }

  Tensor scores(Context& c, Tensor x) {
    if (source == Source::memory && means_of_step != c.total_steps && !memory.empty()) {
      sums.reset(), counts.reset();
      auto const rows = memory.contents();
      for (std::int64_t begin = 0; begin < rows.size(); begin += chunk) {
        add(c, rows.slice(begin, std::min(begin + chunk, rows.size())));
      }
      means_of_step = c.total_steps;
    }
    require(sums.defined(), "ncm has no class means yet; finish an experience before predicting");
    auto means = sums / counts.clamp_min(1).unsqueeze(1);
    if (cosine) means = unit(means);
    auto const phi = feature(c, x);
    auto const distance = (phi.unsqueeze(1) - means.unsqueeze(0)).square().sum(2);
    return (-distance)
        .masked_fill(counts.eq(0), -std::numeric_limits<double>::infinity())
        .to(x.scalar_type());
  }

  void state(Archive& a) {
    a.part("memory", memory);
    a("sums", sums);
    a("counts", counts);
    a("means_of_step", means_of_step);
    if (a.loading() && sums.defined()) sums = sums.to(a.device), counts = counts.to(a.device);
  }

  // State: written by the hooks.
  Tensor sums;                      ///< [C, d] float64 sums of features
  Tensor counts;                    ///< [C] float64
  std::int64_t means_of_step = -1;  ///< when the means of the memory were taken

 private:
  static constexpr std::int64_t chunk = 1000;

  static Tensor unit(Tensor const& v) { return v / v.norm(2, -1, true).clamp_min(1e-12); }

  Tensor feature(Context const& c, Tensor const& x) const {
    auto const phi = c.model.features(x).to(torch::kFloat64);
    return normalise || cosine ? unit(phi) : phi;
  }

  void add(Context& c, Rows const& rows) {
    torch::NoGradGuard no_grad;
    ModeScope mode(*c.model.module, false);
    auto const phi = feature(c, c.inputs(rows.stored));
    auto const classes = rows.labels.max().item<std::int64_t>() + 1;
    auto const held = sums.defined() ? sums.size(0) : 0;
    if (classes > held) {
      auto const old_sums = sums, old_counts = counts;
      sums = torch::zeros({classes, phi.size(1)}, phi.options());
      counts = torch::zeros({classes}, phi.options());
      if (held > 0)
        sums.narrow(0, 0, held).copy_(old_sums), counts.narrow(0, 0, held).copy_(old_counts);
    }
    sums.index_add_(0, rows.y, phi);
    counts.index_add_(0, rows.y, torch::ones({rows.size()}, phi.options()));
  }
};

}  // namespace v0
}  // namespace pawl
