// Images with their channels last: where it is done, and that it changes rounding alone.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "../core/named.hpp"

#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/pooling.h>
#include <pawl/core/learner.hpp>
#include <pawl/heads/multi_head.hpp>
#include <pawl/models/slim_resnet18.hpp>
#include <pawl/models/small_cnn.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

constexpr std::int64_t side = 8;

/// Images [n, 3, 8, 8] of three classes.
Experience images(std::int64_t n, torch::Dtype dtype = torch::kFloat32, std::int64_t index = 0) {
  auto x = torch::empty({n, 3, side, side}, dtype);
  fill_normal(x, 0, 1, Seed{1}.generator("x", index));
  auto const y = torch::arange(n, torch::kInt64) % 3;
  return make_experience(x + y.to(dtype).view({-1, 1, 1, 1}), y, {}, index);
}

SmallCnn small_cnn() {
  return SmallCnn(std::vector<std::int64_t>{3, side, side}, 3,
                  SmallCnnOptions{.channels = {4, 6}, .hidden = 10}, Seed{3});
}

/// A network that would not take other strides: `view` needs the plain layout.
struct ViewsImpl : nn::Module {
  ViewsImpl() {
    convolution = register_module("convolution", nn::Conv2d(nn::Conv2dOptions(3, 4, 3)));
    output = register_module("output", nn::Linear(4 * (side - 2) * (side - 2), 3));
  }
  Tensor forward(Tensor const& x) {
    auto const h = torch::relu(convolution->forward(x));
    return output->forward(h.view({h.size(0), -1}));
  }
  nn::Conv2d convolution{nullptr};
  nn::Linear output{nullptr};
};
TORCH_MODULE(Views);

/// A network whose outcome depends on how its inputs lie in memory.
struct StridesImpl : ViewsImpl {
  Tensor forward(Tensor const& x) {
    return (x.is_contiguous() ? 1 : 2) * ViewsImpl::forward(x.contiguous());
  }
};
TORCH_MODULE(Strides);

template <class Net>
std::string engine_after(Net net, Experience const& experience, Engine engine = Engine::compiled) {
  Learner learner{net, Sgd{.lr = 0.01}};
  learner.fit(experience, {.batch_size = 4, .engine = engine});
  return learner.context().engine();
}

bool channels_last(std::string const& engine) { return engine.rfind("channels_last", 0) == 0; }

bool close(Tensor const& a, Tensor const& b) { return a.allclose(b, 1e-5, 1e-6); }

/// Notes how the outcome of its first layer lies in memory.
struct NotesImpl : nn::Module {
  Tensor forward(Tensor const& x) {
    auto const h = torch::relu(first->forward(x));
    last_seen = h.suggest_memory_format();
    return output->forward(torch::relu(second->forward(h)).flatten(1));
  }
  nn::Conv2d first{register_module("first", nn::Conv2d(nn::Conv2dOptions(1, 4, 3)))};
  nn::Conv2d second{register_module("second", nn::Conv2d(nn::Conv2dOptions(4, 4, 3)))};
  nn::Linear output{register_module("output", nn::Linear(4 * (side - 4) * (side - 4), 3))};
  at::MemoryFormat last_seen = at::MemoryFormat::Preserve;
};
TORCH_MODULE(Notes);

}  // namespace

TEST_CASE("convolutions in float32 have their channels last, and say so") {
  CHECK(channels_last(engine_after(small_cnn(), images(12))));
  CHECK(engine_after(small_cnn(), images(12), Engine::reference) == "reference");
}

TEST_CASE("images of one channel, whose numbers lie the same in both layouts, are seen as such") {
  auto const all = images(24);
  auto const x = all.train.read(torch::arange(24)).stored.narrow(1, 0, 1).contiguous();
  auto const grey = make_experience(x, all.train.labels);
  auto const after = [&](Engine engine) {
    Notes net;
    std::int64_t i = 0;
    for (auto& p : net->parameters()) fill_normal(p, 0, 0.1, Seed{7}.generator("net", i++));
    Learner learner{net, Sgd{.lr = 0.05}};
    learner.fit(grey, {.batch_size = 6, .engine = engine});
    auto const fast = engine == Engine::compiled;
    CHECK(channels_last(learner.context().engine()) == fast);
    CHECK((net->last_seen == at::MemoryFormat::ChannelsLast) == fast);
    return learner.context().weights().clone();
  };
  CHECK(close(after(Engine::compiled), after(Engine::reference)));
}

TEST_CASE("other networks are left as they are") {
  auto const plain = [](std::string const& engine) { return !channels_last(engine); };
  auto const wide = nn::Conv2dOptions(3, 6, 3);
  nn::Sequential grouped(nn::Conv2d(nn::Conv2dOptions(3, 6, 3)), nn::ReLU(),
                         nn::Conv2d(nn::Conv2dOptions(6, 6, 3).groups(6)), nn::Flatten(),
                         nn::Linear(6 * 16, 3));
  nn::Sequential without(nn::Flatten(), nn::Linear(192, 5), nn::Dropout(0.1), nn::Linear(5, 3));
  nn::Sequential doubles(nn::Conv2d(wide), nn::Flatten(), nn::Linear(6 * 36, 3));
  doubles->to(torch::kFloat64);
  auto const strided = nn::Sequential(nn::Conv2d(nn::Conv2dOptions(3, 6, 1).stride(2)),
                                      nn::Flatten(), nn::Linear(6 * 16, 3));
  CHECK(plain(engine_after(grouped, images(12))));
  CHECK(plain(engine_after(strided, images(12))));
  CHECK(plain(engine_after(without, images(12))));
  CHECK(plain(engine_after(doubles, images(12, torch::kFloat64))));
}

TEST_CASE(
    "a network that needs the plain layout gets it, and learns what it learns by the reference") {
  auto const weights = [](auto net, Engine engine) {
    std::int64_t i = 0;
    for (auto& p : net->parameters()) fill_normal(p, 0, 0.1, Seed{7}.generator("net", i++));
    Learner learner{net, Sgd{.lr = 0.01}};
    learner.fit(images(24), {.batch_size = 8, .engine = engine});
    return learner.context().weights().clone();
  };
  CHECK_FALSE(channels_last(engine_after(Views(), images(12))));
  CHECK_FALSE(channels_last(engine_after(Strides(), images(12))));
  CHECK(close(weights(Views(), Engine::compiled), weights(Views(), Engine::reference)));
  CHECK(close(weights(Strides(), Engine::compiled), weights(Strides(), Engine::reference)));
}

TEST_CASE("a step differs from that of the reference by rounding alone") {
  auto const after = [](auto net, Engine engine) {
    auto learner =
        learner_of(net, Sgd{.lr = 0.05}, {named("replay", {{"batch", "6"}}), named("lwf")});
    learner.fit(images(18), {.batch_size = 6, .engine = Engine::reference});
    learner.fit(images(6, torch::kFloat32, 1), {.batch_size = 6, .engine = engine});
    CHECK(channels_last(learner.context().engine()) == (engine == Engine::compiled));
    return learner.context().weights().clone();
  };
  auto const resnet = [] { return SlimResNet18(3, 3, SlimResNet18Options{.nf = 16}, Seed{3}); };
  CHECK(close(after(small_cnn(), Engine::compiled), after(small_cnn(), Engine::reference)));
  CHECK(close(after(resnet(), Engine::compiled), after(resnet(), Engine::reference)));
  CHECK_FALSE(after(small_cnn(), Engine::compiled).equal(after(small_cnn(), Engine::reference)));
}

TEST_CASE("the trial moves neither the statistics of BatchNorm nor a generator") {
  nn::Sequential net(nn::Conv2d(nn::Conv2dOptions(3, 4, 3)), nn::BatchNorm2d(4), nn::Dropout(0.5),
                     nn::Flatten(), nn::Linear(4 * 36, 3));
  torch::manual_seed(5);
  auto const before = torch::rand({3});
  torch::manual_seed(5);
  CHECK(channels_last(engine_after(net, images(12))));
  CHECK(torch::rand({3}).equal(before));
  auto const batches_seen = net->named_buffers()["1.num_batches_tracked"].item<std::int64_t>();
  CHECK(batches_seen == 3);
}

TEST_CASE("a run that is continued from a checkpoint ends with the same bits") {
  struct Saves {
    std::function<void()> save;
    std::int64_t at = 2;
    void step(Context const& c) {
      if (c.index == 1 && c.step == at) save();
    }
  };
  auto const path =
      (std::filesystem::temp_directory_path() / "pawl_image_layout.safetensors").string();
  auto const first = images(18), second = images(24, torch::kFloat32, 1);
  Training const training{.batch_size = 6};
  auto const make = [] {
    return learner_of(small_cnn(), Sgd{.lr = 0.05, .momentum = 0.9},
                      {named("a_gem", {{"batch", "6"}})});
  };
  auto whole = make();
  whole.fit(first, training);
  whole.fit(second, training, Saves{[&] { whole.save(path); }});
  auto resumed = make();
  resumed.load(path);
  resumed.fit(second, training);
  CHECK(channels_last(resumed.context().engine()));
  CHECK(resumed.context().weights().equal(whole.context().weights()));
  std::filesystem::remove(path);
}
