#pragma once

// Images that are shifted and mirrored when they are shown, and what a network was shown.

#include <cstdint>
#include <vector>

#include <torch/nn/modules/activation.h>
#include <pawl/core/augment.hpp>
#include <pawl/core/learner.hpp>

namespace views {

using namespace pawl;

inline Training const both{.batch_size = 6, .augment = {.crop = 2, .flip = true}};

inline Tensor pixels(std::vector<std::int64_t> const& shape, std::uint64_t seed) {
  auto x = torch::empty(shape, torch::kFloat64);
  fill_uniform(x, 1, 255, Seed{seed}.generator("pixels"));
  return x.to(torch::kUInt8);
}

/// Two experiences of 30 images [2, 5, 7] in four classes, no pixel of which is black.
inline std::vector<Experience> images() {
  std::vector<Experience> all;
  for (std::int64_t e = 0; e < 2; ++e) {
    auto const y = torch::arange(30, torch::kInt64) % 2 + 2 * e;
    auto x = pixels({30, 2, 5, 7}, 5 + static_cast<std::uint64_t>(e));
    all.push_back(make_experience(x, y, {}, e));
    all.back().train.normalise.scale = all.back().test.normalise.scale = 1.0 / 255;
  }
  return all;
}

inline nn::Sequential network() {
  nn::Sequential net(nn::Flatten(), nn::Linear(70, 9), nn::Tanh(), nn::Linear(9, 4));
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.3, Seed{3}.generator("net", i++));
  net->to(torch::kFloat64);
  return net;
}

/// Whether `shown` [C, H, W] is `stored` under one of the views that `both` allows.
inline bool is_view_of(Tensor const& stored, Tensor const& shown) {
  for (std::int64_t down = -2; down <= 2; ++down) {
    for (std::int64_t right = -2; right <= 2; ++right) {
      for (std::int64_t mirrored = 0; mirrored < 2; ++mirrored) {
        auto const view = torch::tensor({down, right, mirrored}).view({1, 3});
        if (augmented(stored.unsqueeze(0), view)[0].equal(shown)) return true;
      }
    }
  }
  return false;
}

/// Keeps what the network was shown in every step, as bytes, and which rows it came from.
struct Shown {
  std::vector<Tensor> inputs{};  // [N, C, H, W]
  std::vector<Tensor> fresh{};   // [B] row numbers
  std::vector<Tensor> stored{};  // [B, C, H, W]
  void step(Context const& c) {
    inputs.push_back((c.batch.x * 255).round().to(torch::kUInt8));
    fresh.push_back(c.fresh.id);
    stored.push_back(c.fresh.stored);
  }
};

}  // namespace views
