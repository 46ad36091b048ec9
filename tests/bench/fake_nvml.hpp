#pragma once

// A library with the name and the functions of NVML that the energy meter asks, for three GPUs, the
// last of which keeps no account. Their UUIDs are GPU-a, GPU-b and GPU-c.

extern "C" {
void fake_nvml_add(unsigned gpu, unsigned long long millijoules);
int fake_nvml_users();
}
