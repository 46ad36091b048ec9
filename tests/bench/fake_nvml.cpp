#include "fake_nvml.hpp"

#include <cstring>

namespace {

constexpr int not_supported = 3, not_found = 6;
unsigned long long used[] = {5'000'000'000ull, 1000, 0};
int users = 0;

}  // namespace

extern "C" {

void fake_nvml_add(unsigned gpu, unsigned long long millijoules) { used[gpu] += millijoules; }
int fake_nvml_users() { return users; }

int nvmlInit_v2() { return ++users, 0; }
int nvmlShutdown() { return --users, 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  if (index > 2) return not_found;
  return *device = &used[index], 0;
}
int nvmlDeviceGetHandleByUUID(char const* uuid, void** device) {
  for (unsigned i = 0; i < 3; ++i) {
    char const known[] = {'G', 'P', 'U', '-', static_cast<char>('a' + i), '\0'};
    if (std::strcmp(uuid, known) == 0) return nvmlDeviceGetHandleByIndex_v2(i, device);
  }
  return not_found;
}
int nvmlDeviceGetTotalEnergyConsumption(void* device, unsigned long long* millijoules) {
  if (device == &used[2]) return not_supported;
  return *millijoules = *static_cast<unsigned long long*>(device), 0;
}
}
