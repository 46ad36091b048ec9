#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../engine/compiled_chain.hpp"
#include "../engine/first_use.hpp"
#include "layer_graph.hpp"
#include "layer_sum.hpp"
#include "probe.hpp"

namespace pawl {
inline namespace v0 {

/// Adds one sample's (or one unit's) terms to a sum [P], through gradients by the parameters.
inline void add_single(Probe const& probe, Dataset const& data, PerSampleSum const& what,
                       Rows const& rows, std::int64_t number, Tensor const& sum) {
  auto const z = probe.logits(data, rows);
  if (!z.requires_grad()) return;
  auto const terms = what.cotangents(z.detach(), rows, number);
  for (std::int64_t k = 0; k < terms.count; ++k) {
    auto const gradients = torch::autograd::grad({z}, probe.arena.parameters(), {terms.at(k)},
                                                 k + 1 < terms.count, false, true);
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      auto place = probe.arena.parameter_view(sum, i);
      what.add(place, gradients[i].detach());
    }
  }
}

/// Adds the terms of all rows at once, if autograd's graph allows. Returns the obstacle.
inline std::string add_by_graph(Probe const& probe, Dataset const& data, PerSampleSum const& what,
                                Rows const& rows, std::int64_t first, Tensor const& sum) {
  ProducedTensors produced;
  auto const z = probe.logits(data, rows, &produced);
  if (z.dim() != 2) return "the logits are not [N, C]";
  auto const graph = LayerGraphReader(z, produced, probe.model, probe.arena).take();
  if (!graph.obstacle.empty() || graph.uses.empty()) return graph.obstacle;
  torch::autograd::edge_list outputs;
  c10::SmallVector<LayerSum, 4> sums;
  for (auto const& use : graph.uses) {
    outputs.push_back(use.output);
    sums.emplace_back(use, what, !probe.reference);
  }
  auto const terms = what.cotangents(z.detach(), rows, first);
  for (std::int64_t k = 0; k < terms.count; ++k) {
    auto const gradients = torch::autograd::Engine::get_default_engine().execute(
        {torch::autograd::impl::gradient_edge(z)}, {terms.at(k)}, k + 1 < terms.count, false, false,
        outputs);
    torch::NoGradGuard no_grad;
    for (std::size_t l = 0; l < outputs.size(); ++l) {
      if (gradients[l].defined()) sums[l].take(gradients[l].detach());
    }
  }
  torch::NoGradGuard no_grad;
  for (auto& layer : sums) layer.add_to(probe.arena, sum);
  return "";
}

/// Adds the terms of all rows at once, of a network that is a chain of layers. Returns the
/// obstacle.
inline std::string add_by_chain(CompiledChain& chain, Probe const& probe, Dataset const& data,
                                PerSampleSum const& what, Rows const& rows, std::int64_t first,
                                Tensor const& sum) {
  auto const x = probe.inputs(data, rows);
  if (!chain.takes(x)) return "the inputs do not fit the chain of layers";
  auto const z = probe.active_of(chain.forward(x), rows);
  if (!z.requires_grad()) return "";
  c10::SmallVector<LayerUse, 4> uses;
  for (auto const& layer : chain.layers()) {
    uses.push_back({.input = layer.input, .weight = layer.weight_index, .bias = layer.bias_index});
  }
  c10::SmallVector<LayerSum, 4> sums;
  for (auto const& use : uses) sums.emplace_back(use, what, true);
  auto const terms = what.cotangents(z.detach(), rows, first);
  for (std::int64_t k = 0; k < terms.count; ++k) {
    auto const last = k + 1 == terms.count;
    auto const gradient = torch::autograd::grad({z}, {chain.leaf()}, {terms.at(k)}, !last).front();
    chain.backward_through(gradient, [&](std::size_t l, Tensor const& d) {
      if (uses[l].weight >= 0 || uses[l].bias >= 0) sums[l].take(d);
    });
  }
  torch::NoGradGuard no_grad;
  for (auto& layer : sums) layer.add_to(probe.arena, sum);
  return "";
}

/// Adds the terms of all rows at once; without a chain by autograd's graph. Returns the obstacle.
inline std::string add_batched(CompiledChain& chain, Probe const& probe, Dataset const& data,
                               PerSampleSum const& what, Rows const& rows, std::int64_t first,
                               Tensor const& sum) {
  return chain.compiled() ? add_by_chain(chain, probe, data, what, rows, first, sum)
                          : add_by_graph(probe, data, what, rows, first, sum);
}

/// Samples that influence each other in the forward pass leave no trace in the graph, nor do
/// factors in a layer, and a forward may be more than its chain: compares a few samples with the
/// loop, parameter by parameter; a chain as closely as training does. `room` [P] is zero, and is
/// not afterwards.
inline std::string compare_ways(CompiledChain& chain, Probe const& probe, Dataset const& data,
                                PerSampleSum const& what, Rows const& rows, std::int64_t first,
                                Tensor const& room) {
  auto const few = rows.slice(0, std::min<std::int64_t>(3, rows.size()));
  auto const looped = torch::zeros_like(room);
  auto obstacle = add_batched(chain, probe, data, what, few, first, room);
  if (!obstacle.empty()) return obstacle;
  for (std::int64_t i = 0; i < few.size(); ++i) {
    add_single(probe, data, what, few.slice(i, i + 1), first + i, looped);
  }
  auto const half = probe.arena.weights().element_size() < 4;
  auto const tolerance = half ? 5e-2 : chain.compiled() ? 1e-3 : 1e-2;
  // What rounding leaves of gradients that cancel, as those of a bias before a norm of its channel.
  auto const doubles = probe.arena.weights().scalar_type() == torch::kFloat64;
  auto const rounding = 32 * (half      ? 0
                              : doubles ? std::numeric_limits<double>::epsilon()
                                        : std::numeric_limits<float>::epsilon());
  auto const share = what.of == PerSampleSum::Of::square ? rounding * rounding : rounding;
  auto const negligible = share * looped.norm().item<double>();
  room.sub_(looped);
  for (std::size_t i = 0; i < probe.arena.parameters().size(); ++i) {
    auto const off = probe.arena.parameter_view(room, i).norm().item<double>();
    auto const norm = probe.arena.parameter_view(looped, i).norm().item<double>();
    if (off > tolerance * norm + negligible) {
      return "samples influence each other in the forward pass, or a layer has factors of its own";
    }
  }
  return "";
}

/// As many samples as a pass takes without waste: on the host, what stays in the caches; a device
/// takes more at a time, as far as its memory goes.
inline std::int64_t suitable_chunk(Dataset const& data, torch::Device device) {
  constexpr std::int64_t few = 256, many = 4096, numbers = std::int64_t{1} << 21;
  if (device.is_cpu()) return few;
  auto const row = std::max<std::int64_t>(1, c10::multiply_integers(data.source->shape));
  return std::clamp(numbers / row, few, many);
}

/// sum [P] float64 over the samples at `positions` [k] of a data set. On the side: eval mode;
/// buffers, `.grad`, training flags and generators stay as found.
inline Tensor per_sample_sum(Probe const& probe, Dataset const& data, Tensor const& positions,
                             PerSampleSum const& what) {
  settle_first_use();
  auto& module = *probe.model.module;
  ModeScope mode(module, false);
  BufferScope buffers(module);
  std::optional<NoiseScope> noise(std::in_place, probe.generator("model.aux"),
                                  probe.arena.device());
  torch::AutoGradMode grad(true);
  auto const& weights = probe.arena.weights();
  auto sum = torch::zeros_like(weights, torch::kFloat64);
  auto part = torch::zeros_like(weights, PerSampleSum::wide_type(weights));  // of some of them
  PerSamplePath path;
  if (!probe.allow_batched) path.obstacle = "one sample at a time was asked for";
  if (what.unit > 1) path.obstacle = "gradients of batch means were asked for";
  CompiledChain chain;
  if (!probe.reference && path.obstacle.empty()) chain.compile(module, probe.arena);
  auto const n = positions.numel();
  auto const chunk = what.unit > 1     ? what.unit
                     : probe.chunk > 0 ? probe.chunk
                                       : suitable_chunk(data, probe.arena.device());
  std::int64_t chunks = 0;  // in the part
  for (std::int64_t begin = 0; begin < n; begin += chunk) {
    auto const rows =
        data.read(positions.slice(0, begin, std::min(begin + chunk, n)), probe.arena.device());
    auto const compare = [&] {
      auto why = compare_ways(chain, probe, data, what, rows, begin, part);
      part.zero_();
      return why;
    };
    if (begin == 0 && chain.compiled() && !probe.knows_chain) {
      if (auto why = compare(); !why.empty()) chain.refuse(std::move(why));
    }
    if (begin == 0 && !chain.compiled() && path.obstacle.empty()) path.obstacle = compare();
    if (path.obstacle.empty()) {
      path.obstacle = add_batched(chain, probe, data, what, rows, begin, part);
    }
    if (!path.obstacle.empty()) {  // then nothing was added
      for (std::int64_t i = 0; i < rows.size(); i += what.unit) {
        auto const unit = rows.slice(i, std::min(i + what.unit, rows.size()));
        add_single(probe, data, what, unit, begin + i, part);
      }
    }
    // A few sums may be added in float32; sample by sample they would be too many.
    auto const at_most = path.obstacle.empty() ? 8 : 1;
    if (++chunks >= at_most || begin + chunk >= n) {
      sum.add_(part);
      part.zero_();
      chunks = 0;
    }
    if (noise && !noise->drawn()) noise.reset();  // such a module lets other threads go on
  }
  path.batched = path.obstacle.empty();
  path.compiled = path.batched && chain.compiled();
  if (probe.path) *probe.path = path;
  return sum;
}

}  // namespace v0
}  // namespace pawl
