#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "../device/step_table.hpp"
#include "random.hpp"

namespace pawl {
inline namespace v0 {

// What is changed for a while and put back as found.

/// Puts a module in train or eval mode for a scope, and every submodule back as found.
class ModeScope {
 public:
  ModeScope(nn::Module& module, bool training) : parts_(module.modules()) {
    bool change = false;
    for (auto const& part : parts_) {
      training_.push_back(part->is_training());
      change = change || part->is_training() != training;
    }
    if (change) {
      module.train(training);
    } else {
      parts_.clear();
    }
  }
  ~ModeScope() {
    // Parents come before their children, so a child that differs is set last.
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      if (parts_[i]->is_training() != training_[i]) parts_[i]->train(training_[i]);
    }
  }
  ModeScope(ModeScope const&) = delete;
  ModeScope& operator=(ModeScope const&) = delete;

 private:
  std::vector<std::shared_ptr<nn::Module>> parts_;
  std::vector<bool> training_;  // of each part, as found
};

/// Restores the buffers of a module (BatchNorm statistics) when it goes out of scope.
class BufferScope {
 public:
  explicit BufferScope(nn::Module& module) : buffers_(module.buffers()) {
    for (auto const& buffer : buffers_) found_.push_back(buffer.clone());
  }
  ~BufferScope() {
    torch::NoGradGuard no_grad;
    for (std::size_t i = 0; i < buffers_.size(); ++i) buffers_[i].copy_(found_[i]);
  }
  BufferScope(BufferScope const&) = delete;
  BufferScope& operator=(BufferScope const&) = delete;

 private:
  std::vector<Tensor> buffers_, found_;
};

/// Seeds LibTorch's process-wide generators for a scope (dropout draws from them), that of the host
/// and that of `device`, and puts them back as found. Learners in other threads wait for its end.
/// While a step is recorded it does nothing: only steps that draw nothing are.
class NoiseScope {
 public:
  explicit NoiseScope(Generator key, torch::Device device = torch::kCPU) {
    if (recording()) return;
    alone_ = alone();
    host_ = at::check_generator<at::CPUGeneratorImpl>(at::detail::getDefaultCPUGenerator());
    host_found_ = host_->get_state();
    auto const seed = key.bits();
    host_->set_current_seed(seed);
    host_seeded_ = host_->engine();
    if (device.is_cpu()) return;
    device_ = at::globalContext().defaultGenerator(device);
    device_found_ = device_.get_state();
    device_.set_current_seed(seed);
    device_seeded_ = device_.get_state();
  }
  ~NoiseScope() {
    if (host_ != nullptr) host_->set_state(*host_found_);
    if (device_.defined()) device_.set_state(device_found_);
  }
  NoiseScope(NoiseScope const&) = delete;
  NoiseScope& operator=(NoiseScope const&) = delete;

  /// Keeps the process-wide generators from everybody else, as long as the lock is held.
  static std::unique_lock<std::recursive_mutex> alone() {
    return std::unique_lock(one_at_a_time());
  }

  /// Whether anything was drawn since.
  bool drawn() const {
    if (host_ == nullptr) return false;
    auto const now = host_->engine().data(), then = host_seeded_.data();
    return now.next_ != then.next_ || now.left_ != then.left_ || now.state_ != then.state_ ||
           (device_.defined() && !device_.get_state().equal(device_seeded_));
  }

 private:
  static std::recursive_mutex& one_at_a_time() {
    static std::recursive_mutex mutex;
    return mutex;
  }

  std::unique_lock<std::recursive_mutex> alone_{};
  at::CPUGeneratorImpl* host_ = nullptr;
  c10::intrusive_ptr<c10::TensorImpl> host_found_;
  at::mt19937 host_seeded_;
  at::Generator device_{};  // undefined on the host; its states lie on the host
  Tensor device_found_{}, device_seeded_{};
};

}  // namespace v0
}  // namespace pawl
