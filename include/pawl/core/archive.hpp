#pragma once

#include <cstdint>
#include <map>
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
};
using Layout = std::vector<Span>;

/// Number of elements of a flat tensor with this layout, padding included.
std::int64_t flat_size(Layout const& layout, std::int64_t alignment = 16);

/// Copies `old` [P] into a new flat tensor of another layout: parameters are matched by name, and
/// where one has grown, its leading rows keep their bits and the new ones come from `fill` [P'].
Tensor remapped(Tensor const& old, Layout const& from, Layout const& to, Tensor const& fill);

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
  enum class Fill { zero, weights };  ///< of the new rows of a flat tensor when a head grows

  explicit Archive(Mode mode) : mode(mode) {}

  void operator()(std::string const& name, Tensor& tensor) {
    if (mode == Mode::save && tensor.defined()) tensors[key(name)] = tensor.detach();
    if (mode == Mode::load) tensor = take(name);
    if (mode == Mode::count && tensor.defined()) {
      bytes += static_cast<std::int64_t>(tensor.numel() * tensor.element_size());
    }
  }

  void flat(std::string const& name, Tensor& tensor, Fill fill = Fill::zero) {
    if (mode != Mode::grow) return (*this)(name, tensor);
    if (!tensor.defined()) return;
    tensor =
        remapped(tensor, from, to, fill == Fill::weights ? weights : torch::zeros_like(weights));
  }

  void operator()(std::string const& name, std::int64_t& value) {
    if (mode == Mode::save) texts[key(name)] = std::to_string(value);
    if (mode == Mode::load) value = std::stoll(text(name));
  }
  void operator()(std::string const& name, bool& value) {
    std::int64_t number = value;
    (*this)(name, number);
    value = number != 0;
  }
  void operator()(std::string const& name, std::string& value) {
    if (mode == Mode::save) texts[key(name)] = value;
    if (mode == Mode::load) value = text(name);
  }
  void operator()(std::string const& name, double& value) {
    auto tensor = torch::full({}, value, torch::kFloat64);
    (*this)(name, tensor);
    value = tensor.item<double>();
  }
  void operator()(std::string const& name, std::vector<std::int64_t>& values) {
    auto tensor = torch::tensor(values, torch::kInt64);
    (*this)(name, tensor);
    if (mode != Mode::load) return;
    tensor = tensor.contiguous();
    values.assign(tensor.data_ptr<std::int64_t>(),
                  tensor.data_ptr<std::int64_t>() + tensor.numel());
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

  Mode mode;
  std::map<std::string, Tensor> tensors;     ///< saved, or to load from
  std::map<std::string, std::string> texts;  ///< numbers and texts, as texts
  torch::Device device = torch::kCPU;        ///< where loaded tensors go
  std::int64_t bytes = 0;                    ///< counted
  Layout from, to;                           ///< of a growth
  Tensor weights;                            ///< [P'] the grown weights

 private:
  std::string key(std::string const& name) const { return prefix_ + name; }

  /// A tensor that was undefined when saved is absent, and loads as undefined.
  Tensor take(std::string const& name) {
    auto const found = tensors.find(key(name));
    if (found == tensors.end()) return {};
    return found->second.clone();
  }
  std::string const& text(std::string const& name) {
    auto const found = texts.find(key(name));
    require(found != texts.end(), "the checkpoint has no '", key(name),
            "': it was written by another composition or version; build the same learner first");
    return found->second;
  }

  std::string prefix_;
};

inline std::int64_t flat_size(Layout const& layout, std::int64_t alignment) {
  if (layout.empty()) return 0;
  auto const end = layout.back().offset + layout.back().size;
  return (end + alignment - 1) / alignment * alignment;
}

inline Tensor remapped(Tensor const& old, Layout const& from, Layout const& to,
                       Tensor const& fill) {
  auto grown = fill.clone();
  for (auto const& span : to) {
    for (auto const& before : from) {
      if (before.name != span.name) continue;
      auto const kept = std::min(before.size, span.size);  // leading rows lie first
      grown.narrow(0, span.offset, kept).copy_(old.narrow(0, before.offset, kept));
    }
  }
  return grown;
}

}  // namespace v0
}  // namespace pawl
