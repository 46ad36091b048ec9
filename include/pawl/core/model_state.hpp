#pragma once

#include <string>

#include "archive.hpp"
#include "model.hpp"

namespace pawl {
inline namespace v0 {

/// The parameters and buffers of a module by the names they have in a checkpoint.
inline torch::OrderedDict<std::string, Tensor> model_tensors(nn::Module const& module) {
  torch::OrderedDict<std::string, Tensor> all;
  for (auto const& item : module.named_parameters())
    all.insert("model." + item.key(), item.value());
  for (auto const& item : module.named_buffers()) all.insert("model." + item.key(), item.value());
  return all;
}

/// Saves or loads the parameters and buffers of a module, in place.
inline void visit_model(Archive& a, nn::Module const& module) {
  torch::NoGradGuard no_grad;
  for (auto const& live : model_tensors(module)) {
    auto stored = live.value();
    a(live.key(), stored);
    if (a.loading()) live.value().copy_(stored);
  }
}

/// Whether heads that lack rows or tasks of the checkpoint will still make room for them.
enum class Heads { will_grow, are_grown };

/// Throws unless the model of a checkpoint is this one. Changes nothing.
inline void check_model(Archive const& a, nn::Module const& module, Heads heads) {
  auto const live = model_tensors(module);
  auto const may_grow = [&](std::string const& name) {
    if (heads == Heads::are_grown) return false;
    for (auto const& part : module.named_modules("model")) {
      auto const inside = name.compare(0, part.key().size() + 1, part.key() + ".") == 0;
      if (inside && dynamic_cast<Head const*>(part.value().get())) return true;
    }
    return false;
  };
  auto const fits = [](Tensor const& stored, Tensor const& here, bool growing) {
    if (stored.dtype() != here.dtype() || stored.dim() != here.dim()) return false;
    if (stored.sizes() == here.sizes()) return true;
    return growing && here.dim() > 0 && stored.size(0) > here.size(0) &&
           stored.sizes().slice(1) == here.sizes().slice(1);
  };
  for (auto const& item : live) {
    auto const& name = item.key();
    auto const& here = item.value();
    auto const* stored = a.tensors.find(name);
    require(stored != nullptr, {"the checkpoint has no '", name,
                                "', which this model has; build the same model first"});
    require(fits(*stored, here, may_grow(name)),
            {"the checkpoint's '", name, "' ", stored->sizes(), " ", stored->scalar_type(),
             " does not fit this model, where it is ", here.sizes(), " ", here.scalar_type(),
             "; build the same model first"});
  }
  for (auto const& item : a.tensors) {
    auto const& name = item.key();
    require(
        name.rfind("model.", 0) != 0 || live.contains(name) || may_grow(name),
        {"the checkpoint has '", name, "', which this model lacks; build the same model first"});
  }
}

}  // namespace v0
}  // namespace pawl
