#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"

namespace pawl {
inline namespace v0 {

/// Where one parameter lies in a flat arena.
struct Span {
  std::string name;                 ///< name of the parameter in the module
  std::vector<std::int64_t> shape;  ///< of the parameter
  std::int64_t offset = 0;          ///< first element in the flat tensor
  std::int64_t size = 0;            ///< number of elements

  bool operator==(Span const&) const = default;
};
using Layout = c10::SmallVector<Span, 0>;

/// Copies `old` [P] into a new flat tensor of another layout: parameters are matched by name, and
/// where one has grown, its leading rows keep their bits and the new ones come from `fill` [P'], as
/// does all of a parameter whose rows have another shape.
Tensor remapped(Tensor const& old, Layout const& from, Layout const& to, Tensor const& fill);

/// Texts by name, in the order they came.
struct Texts {
  std::vector<std::string> names;
  std::vector<std::string> values;  ///< of names[i]

  std::string const* find(std::string const& name) const {
    auto const i = std::find(names.begin(), names.end(), name) - names.begin();
    return i == std::ssize(names) ? nullptr : &values[static_cast<std::size_t>(i)];
  }
  void add(std::string name, std::string value) {
    names.push_back(std::move(name));
    values.push_back(std::move(value));
  }
  bool operator==(Texts const&) const = default;
};

/// Visits the state of a component: to save it, to load it, to move it to a grown arena, or to
/// count its bytes. A component lists its state once, in `void state(Archive&)`:
/// @code
///   void state(pawl::Archive& a) {
///     a.flat("fisher", fisher);  // [P]: one value per parameter, follows the growth of the model
///     a("means", means);         // any other tensor
///     a("seen", seen);           // numbers, lists of numbers, texts
///   }
/// @endcode
class Archive {
 public:
  enum class Mode { save, load, grow, count };
  /// Value of what appears when a head grows: 0, or the present weight (for anchors).
  enum class Fill { zero, weights };

  explicit Archive(Mode mode) : mode(mode) {}

  void operator()(std::string const& name, Tensor& tensor) {
    if (mode == Mode::save && tensor.defined()) {
      require(!tensors.contains(key(name)), listed_twice(name));
      tensors.insert(key(name), tensor.detach());
    }
    if (mode == Mode::load) {
      tensor = take(name);
      if (tensor.defined() && !device.is_cpu()) tensor = tensor.to(device);
    }
    if (mode == Mode::count && tensor.defined()) {
      bytes += static_cast<std::int64_t>(tensor.numel() * tensor.element_size());
    }
  }

  void flat(std::string const& name, Tensor& tensor, Fill fill = Fill::zero) {
    if (mode != Mode::grow) {
      auto const fits = flat_size < 0 || !tensor.defined() || tensor.numel() == flat_size;
      require(fits || mode != Mode::count, {"'", key(name), "' of the checkpoint is of ",
                                            tensor.numel(), " trained weights, and this model has ",
                                            flat_size, "; freeze the same parameters as there"});
      return (*this)(name, tensor);
    }
    if (!tensor.defined()) return;
    tensor =
        remapped(tensor, from, to, fill == Fill::weights ? weights : torch::zeros_like(weights));
  }

  void operator()(std::string const& name, std::int64_t& value) {
    auto text = std::to_string(value);
    (*this)(name, text);
    if (mode == Mode::load) value = std::stoll(text);
  }
  void operator()(std::string const& name, bool& value) {
    std::int64_t number = value;
    (*this)(name, number);
    value = number != 0;
  }
  void operator()(std::string const& name, std::string& value) {
    if (mode == Mode::save) {
      require(texts.find(key(name)) == nullptr, listed_twice(name));
      texts.add(key(name), value);
    }
    if (mode == Mode::load) value = text(name);
  }
  void operator()(std::string const& name, double& value) {
    auto tensor = torch::full({}, value, torch::kFloat64);
    if (mode == Mode::load) {
      value = numbers(name, torch::kFloat64).item<double>();
    } else {
      (*this)(name, tensor);
    }
  }
  void operator()(std::string const& name, std::vector<std::int64_t>& values) {
    if (mode != Mode::load) {
      auto tensor = torch::tensor(values, torch::kInt64);
      return (*this)(name, tensor);
    }
    auto const tensor = numbers(name, torch::kInt64);
    auto const* first = tensor.data_ptr<std::int64_t>();
    values.assign(first, first + tensor.numel());
  }

  /// Visits a part under its own prefix.
  template <class Part>
  void part(std::string const& name, Part& component) {
    auto const outer = prefix_;
    prefix_ = key(name) + ".";
    component.state(*this);
    prefix_ = outer;
  }

  bool saving() const { return mode == Mode::save; }
  bool loading() const { return mode == Mode::load; }

  /// What was saved so far, in storage of its own, to be loaded.
  Archive to_load() const {
    Archive copy(Mode::load);
    copy.texts = texts;
    for (auto const& item : tensors) copy.tensors.insert(item.key(), item.value().clone());
    return copy;
  }

  /// Throws unless all that was there to load, apart from names with this prefix, was loaded.
  void require_all_loaded(std::string const& except) const {
    auto const loaded = [&](std::string const& name) {
      require(std::find(loaded_.begin(), loaded_.end(), name) != loaded_.end() ||
                  name.compare(0, except.size(), except) == 0,
              {"the checkpoint has '", name, "', for which this learner has no place; build the ",
               "same learner first"});
    };
    for (auto const& item : tensors) loaded(item.key());
    for (auto const& name : texts.names) loaded(name);
  }

  Mode mode;
  torch::OrderedDict<std::string, Tensor> tensors;  ///< saved, or to load from
  Texts texts;                                      ///< numbers and texts, as texts
  torch::Device device = torch::kCPU;  ///< where loaded tensors go; CPU: where they are
  std::int64_t bytes = 0;              ///< counted
  std::int64_t flat_size = -1;         ///< what is flat must have it when it is counted; -1: any
  Layout from, to;                     ///< of a growth
  Tensor weights;                      ///< [P'] the grown weights

 private:
  std::string key(std::string const& name) const { return prefix_ + name; }

  /// A tensor that was undefined when saved is absent, and loads as undefined.
  Tensor take(std::string const& name) {
    auto const* found = tensors.find(key(name));
    if (found == nullptr) return {};
    loaded_.push_back(key(name));
    return found->clone();
  }
  /// Numbers on the host; never absent.
  Tensor numbers(std::string const& name, torch::Dtype dtype) {
    auto const values = take(name);
    require(values.defined() && values.scalar_type() == dtype, missing(name));
    return values.cpu().contiguous();
  }
  std::string const& text(std::string const& name) {
    auto const* found = texts.find(key(name));
    require(found != nullptr, missing(name));
    loaded_.push_back(key(name));
    return *found;
  }
  std::string missing(std::string const& name) const {
    return "the checkpoint has no '" + key(name) +
           "': it was written by another composition or version; build the same learner first";
  }
  std::string listed_twice(std::string const& name) const {
    return "the state '" + key(name) + "' is listed twice; give each piece a name of its own";
  }

  std::vector<std::string> loaded_;
  std::string prefix_;
};

/// Whether two parameters have rows of the same shape, however many.
inline bool rows_alike(Span const& a, Span const& b) {
  if (a.shape.size() != b.shape.size()) return false;
  return a.shape.empty() || std::equal(a.shape.begin() + 1, a.shape.end(), b.shape.begin() + 1);
}

inline Tensor remapped(Tensor const& old, Layout const& from, Layout const& to,
                       Tensor const& fill) {
  auto grown = fill.clone();
  for (auto const& span : to) {
    for (auto const& before : from) {
      if (before.name != span.name || !rows_alike(before, span)) continue;
      auto const kept = std::min(before.size, span.size);  // leading rows lie first
      grown.narrow(0, span.offset, kept).copy_(old.narrow(0, before.offset, kept));
    }
  }
  return grown;
}

}  // namespace v0
}  // namespace pawl
