#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.hpp"
#include "random.hpp"

namespace pawl {
inline namespace v0 {

/// A last layer that knows about classes and tasks. A module may contain any number of them,
/// anywhere; the learner finds them, announces classes before they are learned, and routes rows to
/// their task.
class Head : public nn::Module {
 public:
  using nn::Module::Module;

  /// Makes room for the labels of an experience, before its first step or when a label is seen that
  /// was never announced. `task` is -1 where there are no task ids. New rows draw their weights
  /// from `seed`. Returns whether parameters were added or grew.
  virtual bool announce(std::vector<std::int64_t> const& labels, std::int64_t task, Seed seed) = 0;

  /// Task ids [N] int64 (host) of the rows of the next forward pass; undefined: none are known.
  virtual void route(Tensor const& tasks) { (void)tasks; }

  /// Whether rows of this task (-1: without one) can be predicted yet.
  virtual bool ready(std::int64_t task) const {
    (void)task;
    return true;
  }

  /// Whether rows need task ids to be predicted.
  virtual bool per_task() const { return false; }
};

template <class M>
concept ModuleHolder = requires(M m) {
  m.ptr();
};

/// What can be trained: a module holder (`nn::Sequential`, a TORCH_MODULE) or a shared_ptr to a
/// module, whose `forward` takes one tensor and returns logits [N, C].
template <class M>
concept Trainable = requires(M m, Tensor x) {
  { m->forward(x) } -> std::convertible_to<Tensor>;
  {m->parameters()};
};

/// Runs a module. What LibTorch has to say about inputs that do not fit becomes an Error.
template <class F>
Tensor run_module(nn::Module const& module, Tensor const& x, F&& f) {
  try {
    return f();
  } catch (c10::Error const& error) {
    std::string const what = error.what_without_backtrace();
    auto const one_row = what.find("more than 1 value per channel") != std::string::npos;
    fail({"the model '", module.name(), "' failed on inputs ", x.sizes(), " ", x.scalar_type(),
          ": ", what,
          one_row ? "; give BatchNorm two rows or more: a larger batch (of a memory's "
                    "rows, too) or fewer shards"
                  : "; give rows of the shape that it was built for"});
  }
}

/// A module of any type behind one interface: `forward` [N, ...] -> [N, C], and `features` [N, d]
/// where the module has such a member, or is an `nn::Sequential` (all but its last layer).
struct Model {
  std::shared_ptr<nn::Module> module;
  std::function<Tensor(Tensor const&)> forward;
  std::function<Tensor(Tensor const&)> features;  ///< empty when the module cannot tell
  std::vector<Head*> heads;                       ///< found inside the module

  Model() = default;

  template <Trainable M>
  requires(!std::is_same_v<std::remove_cvref_t<M>, Model>)
      Model(M holder) {  // NOLINT(google-explicit-constructor): any module is a model
    require(holder ? true : false, "the model is empty; give a constructed module");
    if constexpr (ModuleHolder<M>) {
      module = holder.ptr();
    } else {
      module = holder;
    }
    auto const& self = *module;
    forward = [holder, &self](Tensor const& x) mutable -> Tensor {
      return run_module(self, x, [&] { return holder->forward(x); });
    };
    if constexpr (requires(Tensor x) { holder->features(x); }) {
      features = [holder, &self](Tensor const& x) mutable -> Tensor {
        return run_module(self, x, [&] { return holder->features(x); });
      };
    } else if constexpr (std::is_same_v<M, nn::Sequential>) {
      features = [holder, &self](Tensor const& x) mutable -> Tensor {
        return run_module(self, x, [&] {
          auto h = x;
          for (auto layer = holder->begin(); layer + 1 != holder->end(); ++layer) {
            h = layer->forward(h);
          }
          return h;
        });
      };
    }
    find_heads();
  }

  Model* operator->() { return this; }
  std::vector<Tensor> parameters() const { return module->parameters(); }

  void find_heads() {
    heads.clear();
    for (auto const& part : module->modules()) {
      if (auto* head = dynamic_cast<Head*>(part.get())) heads.push_back(head);
    }
  }

  void route(Tensor const& tasks) const {
    for (auto* head : heads) head->route(tasks);
  }
  bool ready(std::int64_t task) const {
    for (auto const* head : heads) {
      if (!head->ready(task)) return false;
    }
    return true;
  }
  bool per_task() const {
    for (auto const* head : heads) {
      if (head->per_task()) return true;
    }
    return false;
  }
};

}  // namespace v0
}  // namespace pawl
