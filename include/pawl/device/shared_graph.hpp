#pragma once

#include <memory>
#include <mutex>

#include "../core/error.hpp"
#include "../core/scopes.hpp"
#include "device_graph.hpp"
#include "fleet.hpp"

namespace pawl {
inline namespace v0 {

/// A graph of steps of one learner, or of the same steps of all learners of a fleet: each calls the
/// same functions, and records its own work on its own stream.
class SharedGraph {
 public:
  /// `fleet` is nullptr for a learner by itself.
  SharedGraph(torch::Device device, Fleet::Member* fleet) : device_(device), fleet_(fleet) {}

  /// Whether all say so.
  bool all_say(bool mine) {
    if (fleet_ == nullptr) return mine;
    bool said = mine;
    auto const met = fleet_->agree(said, [](auto const& all) {
      bool every = true;
      for (auto const* each : all) every = every && *each;
      for (auto* each : all) *each = every;
    });
    return met && said;
  }

  void begin() {
    together([](auto const& all) {
      auto& first = *all.front();
      first.alone_ = NoiseScope::alone();  // a recording takes hold of LibTorch's generator
      first.graph_ = std::make_shared<DeviceGraph>(first.device_);
      first.graph_->begin();
      first.began_ = true;
      for (auto* each : all) each->graph_ = first.graph_;
    });
    if (fleet_ != nullptr) fleet_->recording(true);
  }
  void end() {
    if (fleet_ != nullptr) fleet_->recording(false);
    together([](auto const& all) {
      all.front()->graph_->end();
      all.front()->alone_ = {};
    });
  }
  /// Ends a recording that went wrong, and forgets it.
  void abandon() noexcept {
    if (fleet_ != nullptr) fleet_->recording(false), fleet_->leave();
    if (began_) graph_->abandon();
    alone_ = {};
    graph_ = {};
  }

  /// Asks the device to do what was recorded. Returns whether it will: not when the fleet is not
  /// whole.
  bool replay() {
    if (fleet_ == nullptr) return graph_->replay(), true;
    return meet([](auto const& all) { all.front()->graph_->replay(); });
  }

  /// The same for all learners who recorded it.
  DeviceGraph const* identity() const { return graph_.get(); }

 private:
  template <class Work>
  bool meet(Work&& work) {
    auto* mine = this;
    return fleet_->meet(device_, *mine, work);
  }
  template <class Work>
  void together(Work&& work) {
    if (fleet_ == nullptr) {
      SharedGraph* const all[] = {this};
      work(c10::ArrayRef<SharedGraph*>(all, 1));
    } else {
      require(meet(work), "another learner of the fleet has stopped");
    }
  }

  torch::Device device_;
  Fleet::Member* fleet_;
  std::shared_ptr<DeviceGraph> graph_;
  std::unique_lock<std::recursive_mutex> alone_;
  bool began_ = false;
};

}  // namespace v0
}  // namespace pawl
