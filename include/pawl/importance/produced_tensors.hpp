#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// While it lives, notes which tensor each node of autograd's graph has produced on this thread
/// (LibTorch's own record of functions tells).
class ProducedTensors {
 public:
  ProducedTensors() : outer_(current()) {
    current() = this;
    handle_ =
        at::addThreadLocalCallback(at::RecordFunctionCallback(started, ended).needsOutputs(true));
  }
  ProducedTensors(ProducedTensors const&) = delete;
  ProducedTensors& operator=(ProducedTensors const&) = delete;
  ~ProducedTensors() {
    at::removeCallback(handle_);
    current() = outer_;
  }

  /// Notes a tensor that is there already: an input of the network.
  void note(Tensor const& tensor) {
    auto const edge = torch::autograd::impl::gradient_edge(tensor);
    if (!edge.is_valid()) return;
    by_node_[edge.function.get()] = static_cast<int>(edges_.size());
    edges_.push_back(edge);
    tensors_.push_back(tensor);
    versions_.push_back(static_cast<std::int64_t>(tensor._version()));
  }

  /// The tensor whose gradient travels along an edge; undefined where none was noted, or where it
  /// was overwritten since.
  Tensor find(torch::autograd::Edge const& edge) const {
    auto const found = by_node_.find(edge.function.get());
    if (found == by_node_.end()) return {};
    auto const i = static_cast<std::size_t>(found->second);
    auto const& tensor = tensors_[i];
    auto const same = edge.input_nr == edges_[i].input_nr && tensor._version() == versions_[i];
    return same ? tensor.detach() : Tensor{};
  }

 private:
  static std::unique_ptr<at::ObserverContext> started(at::RecordFunction const&) { return nullptr; }
  static void ended(at::RecordFunction const& call, at::ObserverContext*) {
    if (current() == nullptr || call.scope() != at::RecordScope::FUNCTION) return;
    for (auto const& result : call.outputs()) {
      if (result.isTensor() && result.toTensor().requires_grad()) {
        current()->note(result.toTensor());
        return;
      }
    }
  }

  static ProducedTensors*& current() {
    thread_local ProducedTensors* now = nullptr;
    return now;
  }

  ProducedTensors* outer_;
  at::CallbackHandle handle_ = 0;
  std::vector<torch::autograd::Edge> edges_;  // they keep the nodes: no other gets their address
  std::vector<Tensor> tensors_;
  std::vector<std::int64_t> versions_;
  std::unordered_map<torch::autograd::Node*, int> by_node_;
};

}  // namespace v0
}  // namespace pawl
