// expect: pawl: a replay memory needs  void insert(pawl::Rows const&, pawl::Generator)
// expect: must be copyable
#include "pawl/strategies/replay.hpp"

struct Hoard {
  void insert(pawl::Rows const&, pawl::Generator) {}
  bool empty() const { return false; }
};

pawl::Replay use() { return {.memory = Hoard{}}; }
