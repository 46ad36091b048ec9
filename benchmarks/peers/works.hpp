#pragma once

// What is learned, by hand and with pawl.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tasks.hpp"

namespace peers {

/// Where the time of an experience went.
struct Seconds {
  double steps, end;
};

/// One side of a comparison: learns an experience of a task, and predicts.
struct Side {
  std::function<Seconds(std::size_t)> learn;
  std::function<Tensor(Tensor const&)> logits;  ///< of inputs, in eval mode
};

struct Work {
  std::string name, task;
  std::int64_t batch;
  double lr;
  std::function<Side(Task const&, Work const&, std::uint64_t seed)> by_hand, pawl;
};

// In penalty_works.cpp.
Work naive_work();
Work ewc_work();
Work lwf_work();
Work si_work();

// In replay_works.cpp.
Work er_work();
Work a_gem_work();
Work derpp_work();
Work er_cnn_work();

inline std::vector<Work> all_works() {
  return {er_work(), ewc_work(),   naive_work(), lwf_work(),
          si_work(), a_gem_work(), derpp_work(), er_cnn_work()};
}

}  // namespace peers
