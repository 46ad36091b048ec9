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

/// A network whose inputs may not lie in another way: `view` needs the plain layout, and so it does
/// behind the convolution.
struct ViewsImpl : nn::Module {
  ViewsImpl() {
    convolution = register_module("convolution", nn::Conv2d(nn::Conv2dOptions(3, 4, 3)));
    output = register_module("output", nn::Linear(4 * (side - 2) * (side - 2), 3));
  }
  Tensor forward(Tensor const& x) {
    auto const h = convolution->forward(x);
    last_seen = h.suggest_memory_format();
    return output->forward(h.view({h.size(0), -1}).relu_());
  }
  nn::Conv2d convolution{nullptr};
  nn::Linear output{nullptr};
  at::MemoryFormat last_seen = at::MemoryFormat::Preserve;
};
TORCH_MODULE(Views);

/// A network whose outcome depends on how its inputs lie in memory.
struct StridesImpl : ViewsImpl {
  Tensor forward(Tensor const& x) {
    return (x.is_contiguous() ? 1 : 2) * ViewsImpl::forward(x.contiguous());
  }
};
TORCH_MODULE(Strides);

/// One that takes images as rows.
struct UnflattensImpl : ViewsImpl {
  Tensor forward(Tensor const& x) { return ViewsImpl::forward(x.view({-1, 3, side, side})); }
};
TORCH_MODULE(Unflattens);

/// One whose outcome depends on how images lie inside of it.
struct InnerStridesImpl : ViewsImpl {
  Tensor forward(Tensor const& x) {
    auto const h = convolution->forward(x);
    return (h.is_contiguous() ? 1 : 2) * output->forward(h.flatten(1));
  }
};
TORCH_MODULE(InnerStrides);

/// Networks that end with the mean over pixels, and one that has little to gain.
struct PoolsImpl : ViewsImpl {
  PoolsImpl() { rows = register_module("rows", nn::Linear(4, 3)); }
  Tensor forward(Tensor const& x) {
    auto const h = convolution->forward(x).relu();
    return rows->forward(at::adaptive_avg_pool2d(h, {1, 1}).flatten(1)) +
           rows->forward(h.mean({2, 3}));
  }
  nn::Linear rows{nullptr};
};
TORCH_MODULE(Pools);
struct ShallowImpl : nn::Module {
  Tensor forward(Tensor const& x) {
    return output->forward(convolution->forward(x.narrow(1, 0, 1)).relu().flatten(1));
  }
  nn::Conv2d convolution{register_module("convolution", nn::Conv2d(nn::Conv2dOptions(1, 4, 3)))};
  nn::Linear output{register_module("output", nn::Linear(4 * 36, 3))};
};
TORCH_MODULE(Shallow);

/// One whose layers are not all modules: convolutions with groups, turned around, of one pixel with
/// strides and with one channel, between others.
struct FunctionsImpl : nn::Module {
  Tensor forward(Tensor const& x) {
    auto h = first->forward(x.view({-1, 3, side, side}));
    h = at::conv2d(h, grouped, {}, 1, 1, 1, 4).tanh();
    h = at::conv_transpose2d(h, turned).relu();
    h = at::conv2d(h, pixels, {}, at::IntArrayRef{2, 2}).tanh();
    h = at::conv2d(h, narrow, {}, 1, 1);
    h = at::conv2d(h, wide, {}, 1, 1);
    return output->forward(h.view({h.size(0), -1}));
  }
  Tensor weight(char const* name, at::IntArrayRef sizes) {
    return register_parameter(name, torch::zeros(sizes));
  }
  nn::Conv2d first{register_module("first", nn::Conv2d(nn::Conv2dOptions(3, 4, 3)))};
  Tensor grouped = weight("grouped", {4, 1, 3, 3}), turned = weight("turned", {4, 5, 2, 2});
  Tensor pixels = weight("pixels", {6, 5, 1, 1}), narrow = weight("narrow", {1, 6, 3, 3});
  Tensor wide = weight("wide", {4, 1, 3, 3});
  nn::Linear output{register_module("output", nn::Linear(4 * 16, 3))};
};
TORCH_MODULE(Functions);

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

/// Networks that do in training alone what they cannot with their channels last: a mask is written
/// to through a view, so that it is another one; and views of parts are fine.
struct MasksImpl : ViewsImpl {
  Tensor forward(Tensor const& x) {
    auto h = convolution->forward(x).relu();
    if (is_training()) {
      auto const mask = torch::ones_like(h);
      mask.view({h.size(0), -1}).narrow(1, 0, 72).zero_();
      h = h * mask;
    }
    return output->forward(h.view({h.size(0), -1}));
  }
};
TORCH_MODULE(Masks);
struct PartsImpl : ViewsImpl {
  nn::Conv2d before{register_module("before", nn::Conv2d(nn::Conv2dOptions(3, 3, 5).padding(2)))};
  Tensor forward(Tensor const& x) {
    auto const h = convolution->forward(before->forward(x)).relu();
    if (!is_training()) return output->forward(h.view({h.size(0), -1}));
    std::vector<Tensor> rows;
    for (std::int64_t i = 0; i < h.size(0); ++i) rows.push_back(h[i].view({-1}));
    auto const z = output->forward(torch::stack(rows));
    return z + 0 * output->forward(h.view({h.size(0), h.size(1), -1}).view({h.size(0), -1}));
  }
};
TORCH_MODULE(Parts);

/// A network with weights of its own after an epoch, and their engine.
template <class Net>
struct Learned {
  Learned(Experience const& experience, Engine engine) {
    std::int64_t i = 0;
    for (auto& p : net->parameters()) fill_normal(p, 0, 0.1, Seed{7}.generator("net", i++));
    Learner learner{net, Sgd{.lr = 0.01}};
    learner.fit(experience, {.batch_size = 8, .engine = engine});
    weights = learner.context().weights().clone();
    scores = learner.scores(experience.train.read(torch::arange(5)).stored);
    text = learner.context().engine();
  }
  Net net;
  Tensor weights, scores;
  std::string text;
};

/// Learns by default and by the reference.
template <class Net>
std::string compared(Experience const& experience) {
  Learned<Net> const here(experience, Engine::compiled), there(experience, Engine::reference);
  CHECK(close(here.weights, there.weights));
  CHECK(close(here.scores, there.scores));
  CHECK(there.text == "reference");
  return here.text;
}

Experience flat(Experience const& images) {
  auto const all = images.train.read(torch::arange(images.train.size()));
  return make_experience(all.stored.flatten(1), images.train.labels);
}

TEST_CASE("a network that would not have such inputs has its convolutions so") {
  CHECK(channels_last(compared<Views>(images(24))));
  CHECK(channels_last(compared<Strides>(images(24))));
  CHECK(channels_last(compared<Unflattens>(flat(images(24)))));
  CHECK(channels_last(compared<Functions>(flat(images(24)))));
  CHECK(channels_last(compared<Parts>(images(24))));
  CHECK(channels_last(compared<Pools>(images(24))));
  CHECK_FALSE(channels_last(compared<InnerStrides>(images(24))));
  CHECK_FALSE(channels_last(compared<Masks>(images(24))));
  CHECK_FALSE(channels_last(compared<Shallow>(images(24))));
  Learned<Unflattens> const rows(flat(images(24)), Engine::compiled);
  CHECK(rows.net->last_seen == at::MemoryFormat::ChannelsLast);
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
