#include "energy.hpp"

#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include <dlfcn.h>

namespace bench {

namespace {

template <class T>
std::optional<T> first_of(std::filesystem::path const& path) {
  std::ifstream file(path);
  T value{};
  return file >> value ? std::optional(value) : std::nullopt;
}

/// The entry of CUDA_VISIBLE_DEVICES that stands for a device: a number, or the UUID of a GPU.
std::string visible_as(int index) {
  auto const* all = std::getenv("CUDA_VISIBLE_DEVICES");
  if (all == nullptr) return std::to_string(index);
  std::string_view rest = all;
  for (int i = 0; i < index; ++i) {
    auto const comma = rest.find(',');
    if (comma == std::string_view::npos) return {};
    rest.remove_prefix(comma + 1);
  }
  return std::string(rest.substr(0, rest.find(',')));
}

}  // namespace

struct EnergyMeter::Socket {
  std::filesystem::path counter;  // microjoules
  double range = 0;               // at which the counter starts again
  double last = 0, sum = 0;

  bool read() {
    auto const now = first_of<double>(counter);
    if (!now) return false;
    sum += *now >= last ? *now - last : *now + range - last;
    last = *now;
    return true;
  }
};

/// A GPU as the library of the NVIDIA driver shows it.
class EnergyMeter::Gpu {
 public:
  explicit Gpu(int index) : library_(::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    auto const init = function<int()>("nvmlInit_v2");
    auto const by_index = function<int(unsigned, void**)>("nvmlDeviceGetHandleByIndex_v2");
    auto const by_uuid = function<int(char const*, void**)>("nvmlDeviceGetHandleByUUID");
    energy_ = function<int(void*, unsigned long long*)>("nvmlDeviceGetTotalEnergyConsumption");
    shutdown_ = function<int()>("nvmlShutdown");
    if (!init || !by_index || !by_uuid || !energy_ || !shutdown_ || init() != 0) return;
    running_ = true;
    auto const name = visible_as(index);
    auto const number = !name.empty() && name.find_first_not_of("0123456789") == std::string::npos;
    found_ = (number ? by_index(static_cast<unsigned>(std::atoi(name.c_str())), &handle_)
                     : by_uuid(name.c_str(), &handle_)) == 0;
    start_ = millijoules();
  }
  ~Gpu() {
    if (running_) shutdown_();
    if (library_ != nullptr) ::dlclose(library_);
  }
  Gpu(Gpu const&) = delete;
  Gpu& operator=(Gpu const&) = delete;

  std::optional<double> joules() const {
    auto const now = millijoules();
    if (!start_ || !now) return std::nullopt;
    return static_cast<double>(*now - *start_) * 1e-3;
  }

 private:
  template <class F>
  F* function(char const* name) const {
    return reinterpret_cast<F*>(::dlsym(library_, name));
  }

  std::optional<unsigned long long> millijoules() const {
    unsigned long long value = 0;
    if (!found_ || energy_(handle_, &value) != 0) return std::nullopt;
    return value;
  }

  void* library_;
  void* handle_ = nullptr;
  int (*energy_)(void*, unsigned long long*) = nullptr;
  int (*shutdown_)() = nullptr;
  bool running_ = false, found_ = false;
  std::optional<unsigned long long> start_;
};

EnergyMeter::EnergyMeter(std::optional<int> gpu, std::filesystem::path const& zones) {
  std::error_code error;
  for (auto const& zone : std::filesystem::directory_iterator(zones, error)) {
    auto const kind = first_of<std::string>(zone.path() / "name");
    if (!kind || kind->rfind("package-", 0) != 0) continue;  // parts of one, or the whole board
    Socket socket{zone.path() / "energy_uj"};
    socket.range = first_of<double>(zone.path() / "max_energy_range_uj").value_or(0);
    if (!socket.read()) continue;
    socket.sum = 0;
    sockets_.push_back(socket);
  }
  if (gpu) gpu_ = std::make_unique<Gpu>(*gpu);
}

EnergyMeter::~EnergyMeter() = default;

Joules EnergyMeter::read() {
  Joules joules;
  double sum = 0;
  bool all = !sockets_.empty();
  for (auto& socket : sockets_) {
    all = socket.read() && all;
    sum += socket.sum;
  }
  if (all) joules.processors = sum * 1e-6;
  if (gpu_) joules.device = gpu_->joules();
  return joules;
}

}  // namespace bench
