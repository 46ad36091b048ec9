// Counters of energy that are files and functions of the test.

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "fake_nvml.hpp"

#include <doctest/doctest.h>
#include <learn/energy.hpp>

using bench::EnergyMeter;

namespace {

/// A folder like /sys/class/powercap.
struct Zones {
  std::filesystem::path folder = std::filesystem::temp_directory_path() / "pawl_energy_zones";

  Zones() { std::filesystem::remove_all(folder); }
  ~Zones() { std::filesystem::remove_all(folder); }

  void put(std::string const& zone, std::string const& name, long long microjoules) {
    std::filesystem::create_directories(folder / zone);
    std::ofstream(folder / zone / "name") << name << '\n';
    std::ofstream(folder / zone / "max_energy_range_uj") << 10'000'000 << '\n';
    std::ofstream(folder / zone / "energy_uj") << microjoules << '\n';
  }
};

}  // namespace

TEST_CASE("sockets add up, and what is part of one does not count again") {
  Zones zones;
  zones.put("intel-rapl:0", "package-0", 1'000'000);
  zones.put("intel-rapl:1", "package-1", 9'000'000);
  zones.put("intel-rapl:0:0", "core", 0);
  EnergyMeter meter({}, zones.folder);
  CHECK(meter.read().processors == 0.0);
  zones.put("intel-rapl:0", "package-0", 3'500'000);
  zones.put("intel-rapl:1", "package-1", 9'250'000);
  zones.put("intel-rapl:0:0", "core", 2'000'000);
  CHECK(*meter.read().processors == doctest::Approx(2.5 + 0.25));
  CHECK_FALSE(meter.read().device);
}

TEST_CASE("a counter that comes round goes on, as often as it is read in time") {
  Zones zones;
  zones.put("intel-rapl:0", "package-0", 9'000'000);
  EnergyMeter meter({}, zones.folder);
  for (auto const now : {2'000'000, 8'000'000, 1'000'000}) {
    zones.put("intel-rapl:0", "package-0", now);
    meter.read();
  }
  CHECK(*meter.read().processors == doctest::Approx(3 + 6 + 3));
}

TEST_CASE("without a counter, or the right to read it, there is no figure") {
  Zones zones;
  CHECK_FALSE(EnergyMeter({}, zones.folder).read().processors);
  zones.put("intel-rapl:0", "package-0", 1);
  std::filesystem::remove(zones.folder / "intel-rapl:0" / "energy_uj");
  CHECK_FALSE(EnergyMeter({}, zones.folder).read().processors);
  zones.put("intel-rapl:0", "package-0", 1);
  EnergyMeter meter({}, zones.folder);
  std::filesystem::remove(zones.folder / "intel-rapl:0" / "energy_uj");
  CHECK_FALSE(meter.read().processors);
}

TEST_CASE("the GPU that CUDA calls by this number is asked, and let go in the end") {
  ::unsetenv("CUDA_VISIBLE_DEVICES");
  {
    EnergyMeter second(1, "nowhere");
    fake_nvml_add(0, 7000);
    fake_nvml_add(1, 2500);
    CHECK(*second.read().device == doctest::Approx(2.5));
    CHECK_FALSE(second.read().processors);
    CHECK(fake_nvml_users() == 1);
  }
  CHECK(fake_nvml_users() == 0);
  ::setenv("CUDA_VISIBLE_DEVICES", "2,GPU-b,0", 1);
  EnergyMeter by_uuid(1, "nowhere"), by_number(2, "nowhere"), hidden(3, "nowhere");
  fake_nvml_add(0, 100);
  fake_nvml_add(1, 300);
  CHECK(*by_uuid.read().device == doctest::Approx(0.3));
  CHECK(*by_number.read().device == doctest::Approx(0.1));
  CHECK_FALSE(hidden.read().device);
  ::unsetenv("CUDA_VISIBLE_DEVICES");
}

TEST_CASE("a GPU that keeps no account has no figure") {
  EnergyMeter none(2, "nowhere");
  CHECK_FALSE(none.read().device);
}
