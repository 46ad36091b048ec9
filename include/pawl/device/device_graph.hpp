#pragma once

#include <memory>
#include <utility>

#include "../torch.hpp"

namespace pawl {
inline namespace v0 {

/// Work for a device that is recorded once and then started as a whole: a CUDA graph, where
/// LibTorch has CUDA, or what LibTorch knows of other devices.
class DeviceGraph {
 public:
  /// Whether LibTorch can record work for this kind of device.
  static bool available(torch::Device device) {
    if (device.is_cpu()) return false;
#ifdef PAWL_ANY_GRAPH
    if (at::has_graph_impl(device.type())) return true;
#endif
#ifdef PAWL_CUDA_GRAPH
    if (device.is_cuda()) return true;
#endif
    return false;
  }

  explicit DeviceGraph(torch::Device device) {
#ifdef PAWL_ANY_GRAPH
    any_ = at::create_graph_impl(device.type());
    if (any_) return;
#endif
#ifdef PAWL_CUDA_GRAPH
    if (device.is_cuda()) cuda_ = std::make_unique<at::cuda::CUDAGraph>();
#endif
    (void)device;
  }

  /// From here on, work for the present stream (not the default one) is noted and not done. Other
  /// threads may go on using the device.
  void begin() {
#ifdef PAWL_ANY_GRAPH
    if (any_) any_->capture_begin({0, 0}, at::GraphCaptureMode::ThreadLocal);
#endif
#ifdef PAWL_CUDA_GRAPH
    if (cuda_) cuda_->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
#endif
  }
  void end() {
    each([](auto& graph) { graph.capture_end(); });
  }
  /// Asks the device to do what was recorded; does not wait.
  void replay() {
    each([](auto& graph) { graph.replay(); });
  }
  /// Ends a recording that went wrong, and forgets it.
  void abandon() noexcept {
    try {
      end();
    } catch (...) {  // it says once more that the recording went wrong
    }
    try {
      each([](auto& graph) { graph.reset(); });
    } catch (...) {
    }
  }

 private:
  template <class F>
  void each(F&& f) {
#ifdef PAWL_ANY_GRAPH
    if (any_) f(*any_);
#endif
#ifdef PAWL_CUDA_GRAPH
    if (cuda_) f(*cuda_);
#endif
    (void)f;
  }

#ifdef PAWL_ANY_GRAPH
  std::unique_ptr<at::GraphImplInterface> any_;
#endif
#ifdef PAWL_CUDA_GRAPH
  std::unique_ptr<at::cuda::CUDAGraph> cuda_;
#endif
};

/// A stream of this thread for what is asked of a device in a scope, as recording needs one. It
/// starts after what was asked before, and what is asked later waits for it.
class OwnStream {
 public:
  explicit OwnStream(torch::Device device) : device_(device), guard_(device.type()) {
    // The same stream in every scope: autograd runs the gradient of a parameter on the stream where
    // it was first asked for.
    static thread_local c10::Stream own = guard_.getStreamFromGlobalPool(device);
    if (own.device() != device_) own = guard_.getStreamFromGlobalPool(device);
    before_ = guard_.getStream(device);
    wait(own, before_);
    guard_.exchangeStream(own);
  }
  ~OwnStream() {
    wait(before_, guard_.getStream(device_));
    guard_.exchangeStream(before_);
  }
  OwnStream(OwnStream const&) = delete;
  OwnStream& operator=(OwnStream const&) = delete;

 private:
  void wait(c10::Stream const& later, c10::Stream const& earlier) const {
    c10::Event event(device_.type());
    event.record(earlier);
    event.block(later);
  }

  torch::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  c10::Stream before_{c10::Stream::DEFAULT, device_};
};

}  // namespace v0
}  // namespace pawl
