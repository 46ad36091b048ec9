#pragma once

// The energy that a machine takes, from the counters that it keeps itself.

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

namespace bench {

/// Joules since an `EnergyMeter` was made, of everything that ran meanwhile; none where the machine
/// has no counter, or does not let the user read it.
struct Joules {
  std::optional<double> processors;  ///< all sockets, without the memory beside them
  std::optional<double> device;      ///< the board of the GPU
};

/// Reads RAPL counters through the power capping interface of Linux (readable by root alone on most
/// systems), and the counter of an NVIDIA GPU through NVML.
class EnergyMeter {
 public:
  /// `gpu` is the CUDA index of the device that is used, if one is. Both are numbered alike unless
  /// the machine has GPUs of several kinds; CUDA_VISIBLE_DEVICES is heeded.
  explicit EnergyMeter(std::optional<int> gpu,
                       std::filesystem::path const& zones = "/sys/class/powercap");
  ~EnergyMeter();
  EnergyMeter(EnergyMeter const&) = delete;
  EnergyMeter& operator=(EnergyMeter const&) = delete;

  /// To be called now and then: the counters of processors start again from 0 after some 20 minutes
  /// under load.
  Joules read();

 private:
  struct Socket;
  class Gpu;
  std::vector<Socket> sockets_;
  std::unique_ptr<Gpu> gpu_;
};

}  // namespace bench
