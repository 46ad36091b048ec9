// The arena, chains of layers, and what a step costs and leaves behind.

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/messages.hpp"
#include "../core/networks.hpp"

#include <ATen/record_function.h>
#include <c10/core/CPUAllocator.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/dropout.h>
#include <torch/optim/sgd.h>
#include <torch/serialize.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/data/pad.hpp>
#include <pawl/models/mlp.hpp>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace networks;

namespace {

/// Counts operations by name, and allocations of tensor memory, in a scope.
class Census {
 public:
  Census() : allocator_(c10::GetCPUAllocator()), counting_(allocator_) {
    names().clear();
    handle_ = at::addThreadLocalCallback(
        at::RecordFunctionCallback([](at::RecordFunction const& f)
                                       -> std::unique_ptr<at::ObserverContext> {
          ++names()[f.name()];
          return nullptr;
        }).scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
    c10::SetCPUAllocator(&counting_, 1);
  }
  ~Census() {
    at::removeCallback(handle_);
    c10::SetCPUAllocator(allocator_, 1);
  }
  std::map<std::string, std::int64_t> operations() const { return names(); }
  std::int64_t allocations() const { return counting_.count; }

 private:
  struct Counting final : c10::Allocator {
    explicit Counting(c10::Allocator* real) : real(real) {}
    c10::DataPtr allocate(std::size_t n) override { return ++count, real->allocate(n); }
    c10::DeleterFnPtr raw_deleter() const override { return real->raw_deleter(); }
    void copy_data(void* to, void const* from, std::size_t n) const override {
      default_copy_data(to, from, n);
    }
    c10::Allocator* real;
    std::int64_t count = 0;
  };
  static std::map<std::string, std::int64_t>& names() {
    static std::map<std::string, std::int64_t> all;
    return all;
  }
  c10::Allocator* allocator_;
  Counting counting_;
  at::CallbackHandle handle_ = 0;
};

struct Counted {
  std::map<std::string, std::int64_t> operations;
  std::int64_t allocations = 0;
};

/// What five more steps cost.
Counted cost_of_five_steps(std::function<void(std::int64_t)> const& train) {
  auto const measure = [&](std::int64_t steps) {
    Census const census;
    train(steps);
    return Counted{census.operations(), census.allocations()};
  };
  train(2);
  auto const five = measure(5);
  auto ten = measure(10);
  for (auto const& [name, count] : five.operations) ten.operations[name] -= count;
  std::erase_if(ten.operations, [](auto const& entry) { return entry.second == 0; });
  ten.allocations -= five.allocations;
  return ten;
}

std::string list(std::map<std::string, std::int64_t> const& operations) {
  std::string text;
  for (auto const& [name, count] : operations) text += name + " " + std::to_string(count) + "\n";
  return text;
}

/// "layers: why" -> "why".
std::string after_colon(std::string const& engine) {
  auto const colon = engine.find(": ");
  return colon == std::string::npos ? engine : engine.substr(colon + 2);
}

struct Stop : std::runtime_error {
  Stop() : std::runtime_error("stop") {}
};

/// Throws at a step, before the optimizer.
struct Stops {
  std::int64_t at = -1;
  void edit_gradient(Context& c) {
    if (c.total_steps == at) throw Stop();
  }
};

struct NotANumber {
  static constexpr char const* name = "not_a_number";
  Tensor penalty(Context& c) { return c.logits.sum() * (c.step == 2 ? NAN : 0.5); }
};

struct Vector {
  static constexpr char const* name = "vector";
  Tensor penalty(Context& c) { return c.logits; }
};

}  // namespace

TEST_CASE("without shards, a naive step has the operations and allocations of a loop by hand") {
  auto const experience = rows(80, torch::kFloat32);
  auto net = plain_network(torch::kFloat32), twin = plain_network(torch::kFloat32);
  Learner learner{net, Sgd{.lr = 0.1}};
  auto const ours = cost_of_five_steps([&](std::int64_t steps) {
    learner.fit(
        experience,
        {.iterations = steps, .batch_size = 8, .shuffle = false, .engine = Engine::reference});
  });
  auto const compiled = cost_of_five_steps([&](std::int64_t steps) {
    learner.fit(experience, {.iterations = steps, .batch_size = 8, .shuffle = false});
  });
  auto const order = torch::arange(80);
  std::vector<double> losses;
  auto const by_hand = cost_of_five_steps([&](std::int64_t steps) {
    for (std::int64_t step = 0; step < steps; ++step) {
      auto const batch = experience.train.read(order.slice(0, step * 8, step * 8 + 8));
      auto const x = experience.train.normalise(batch.stored.to(torch::kCPU), torch::kFloat32);
      for (auto& p : twin->parameters()) p.mutable_grad() = Tensor();
      auto const loss = at::cross_entropy_loss(twin->forward(x), batch.y);
      losses.push_back(loss.item<double>());  // is it finite?
      loss.backward();
      auto const kept = loss.detach();
      torch::NoGradGuard no_grad;
      for (auto& p : twin->parameters()) p.add_(p.grad(), -0.1);
    }
  });
  INFO("learner:\n", list(ours.operations), "by hand:\n", list(by_hand.operations));
  CHECK(ours.operations == by_hand.operations);
  CHECK(by_hand.operations.size() > 10);
  CHECK(by_hand.allocations > 0);
  CHECK(ours.allocations == by_hand.allocations);
  // Without autograd's graph the layers leave no nodes, and their results keep their memory.
  INFO("compiled:\n", list(compiled.operations));
  CHECK(compiled.operations.count("aten::addmm") + compiled.operations.count("pawl::mm") == 1);
  CHECK(compiled.operations.count("AddmmBackward0") == 0);
  CHECK(by_hand.operations.count("AddmmBackward0") == 1);
  CHECK(compiled.allocations < by_hand.allocations);
}

TEST_CASE_TEMPLATE("a chain of layers is compiled, and gives the weights of autograd", Number,
                   float, double) {
  // The same bits in double precision; in single precision 1e-6 a step.
  auto const dtype = torch::CppTypeToScalarType<Number>::value;
  auto const single = dtype == torch::kFloat32;
  auto const x = rows(80, dtype);
  auto const wide = nn::LinearOptions(5, 7).bias(false);
  std::vector<std::function<nn::Sequential()>> const chains{
      [] { return nn::Sequential(nn::Linear(5, 7), nn::ReLU(), nn::Linear(7, 3)); },
      [] { return nn::Sequential(nn::Flatten(), nn::Linear(5, 7), nn::Tanh(), nn::Linear(7, 3)); },
      [&] {
        return nn::Sequential(nn::Linear(wide), nn::Sigmoid(), nn::Linear(7, 4), nn::Linear(4, 3));
      },
      [] { return nn::Sequential(nn::Linear(5, 3)); },
      [] {  // a frozen layer
        nn::Sequential net(nn::Linear(5, 7), nn::ReLU(), nn::Linear(7, 6), nn::Linear(6, 3));
        for (auto& p : net[2]->as<nn::Linear>()->parameters()) p.requires_grad_(false);
        return net;
      }};
  for (auto const& make : chains) {
    for (auto const& optimizer : {AnyOptimizer(Sgd{.lr = 0.1}), AnyOptimizer(Adam{.lr = 0.01})}) {
      auto net = make(), twin = make();
      net->to(dtype), twin->to(dtype);
      draw_weights(*net), draw_weights(*twin);
      AnyLearner learner{Model(net), optimizer, StrategyList{}};
      AnyLearner slow{Model(twin), optimizer, StrategyList{}};
      for (std::int64_t const steps : {1, 26}) {
        learner.fit(x, {.iterations = steps, .batch_size = 9});
        slow.fit(x, {.iterations = steps, .batch_size = 9, .engine = Engine::reference});
        CHECK(learner.context().engine() == "compiled");
        CHECK(slow.context().engine() == "reference");
        auto const ours = copies(*net), theirs = copies(*twin);
        auto const tolerance = single ? 1e-6 * static_cast<double>(steps) : 0;
        for (std::size_t i = 0; i < ours.size(); ++i) {
          CHECK(ours[i].allclose(theirs[i], tolerance, tolerance));
        }
      }
    }
  }
}

namespace {

/// A perceptron whose forward is more than its layers.
struct ScaledImpl : MlpImpl {
  explicit ScaledImpl(double by) : MlpImpl(5, 3, MlpOptions{.hidden = {64}}, Seed{2}), factor(by) {}
  Tensor forward(Tensor const& x) { return factor * MlpImpl::forward(x); }
  double factor;
};

/// Products of single precision may use bfloat16 where the processor has it.
struct MediumPrecision {
  MediumPrecision() { at::globalContext().setFloat32MatmulPrecision("medium"); }
  MediumPrecision(MediumPrecision const&) = delete;
  MediumPrecision& operator=(MediumPrecision const&) = delete;
  ~MediumPrecision() { at::globalContext().setFloat32MatmulPrecision("highest"); }
};

/// Edits the logits in place, and has the network run once more on the side.
struct Meddles {
  static constexpr char const* name = "meddles";
  Tensor loss(Context& c) {
    c.logits.mul_(0.9);
    return c.weighted_cross_entropy();
  }
  Tensor penalty(Context& c) { return c.forward(c.batch.x + 0.1).square().mean(); }
};

/// Reads what the supervised loss alone does to the weights.
struct Reads {
  static constexpr char const* name = "reads";
  static constexpr bool needs_task_gradient = true;
  Tensor penalty(Context& c) { return c.logits.square().mean(); }
  void after_step(Context& c) { sum = sum.defined() ? sum + c.task_gradient : c.task_gradient; }
  Tensor sum;
};

}  // namespace

// Its linear layers may be pawl's, where the build has products.
TEST_CASE("what is no chain of layers runs through autograd, and says why") {
  auto const x = rows(40, torch::kFloat32);
  auto const engine_of = [&](auto net) {
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(x, {.batch_size = 8});
    return after_colon(learner.context().engine());
  };
  nn::Linear twice(5, 5);
  auto const no_chain = "the model is not a chain of layers";
  CHECK(engine_of(nn::Sequential(nn::Linear(5, 7), nn::BatchNorm1d(7), nn::Linear(7, 3))) ==
        no_chain);
  CHECK(engine_of(nn::Sequential(nn::Linear(5, 7), GrowingHead(7))) == no_chain);
  CHECK(engine_of(nn::Sequential(nn::ReLU(), nn::Linear(5, 3))) == no_chain);
  CHECK(engine_of(nn::Sequential(twice, nn::ReLU(), twice)) == "the model uses a parameter twice");
  CHECK(engine_of(Mlp(5, 3, MlpOptions{.hidden = {7}})) == "compiled");
  CHECK(engine_of(Mlp(5, 3, MlpOptions{.hidden = {7}, .dropout = 0.1})) == no_chain);
  CHECK(engine_of(std::make_shared<ScaledImpl>(2)) ==
        "the model's forward is more than its chain of layers");
}

TEST_CASE("a chain is told from what is more than one in bfloat16 too") {
  auto const x = rows(640, torch::kFloat32);
  auto const engine_of = [&](auto net) {
    Learner learner{net, Sgd{.lr = 0.1}};
    learner.fit(x, {.batch_size = 64});
    return after_colon(learner.context().engine());
  };
  MediumPrecision const medium;
  CHECK(engine_of(Mlp(5, 3, MlpOptions{.hidden = {64}})) == "compiled");
  CHECK(engine_of(std::make_shared<ScaledImpl>(1.01)) ==
        "the model's forward is more than its chain of layers");
}

TEST_CASE("strategies see the same step whichever engine runs it") {
  auto const x = rows(40, torch::kFloat64);
  auto const run = [&](Engine engine, std::int64_t shards) {
    auto net = plain_network(torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.5}, Meddles{}, Reads{}};
    learner.fit(x, {.epochs = 2, .batch_size = 8, .shards = shards, .engine = engine});
    auto all = copies(*net);
    all.push_back(learner.strategy<Reads>().sum);
    return all;
  };
  for (std::int64_t const shards : {1, 3}) {
    auto const compiled = run(Engine::compiled, shards), slow = run(Engine::reference, shards);
    for (std::size_t i = 0; i < slow.size(); ++i)
      CHECK(compiled[i].allclose(slow[i], 1e-12, 1e-14));
  }
}

TEST_CASE("parameters may leave the arena by any way, and training goes on with their values") {
  auto const dtype = torch::kFloat64;
  auto const experience = rows(40, dtype);
  Training const training{.epochs = 2, .batch_size = 8, .shuffle = false};
  // What is done between two fits, and done to the twin of a loop by hand as well.
  std::vector<std::pair<std::string, std::function<void(nn::Sequential&)>>> const ways{
      {"nothing", [](nn::Sequential&) {}},
      {"zero_grad", [](nn::Sequential& net) { net->zero_grad(); }},
      {"zero_grad to zeros", [](nn::Sequential& net) { net->zero_grad(/*set_to_none=*/false); }},
      {"set_data",
       [](nn::Sequential& net) {
         for (auto& p : net->parameters()) p.set_data(p.detach().clone());
       }},
      {"to float32 and back",
       [](nn::Sequential& net) {
         net->to(torch::kFloat32);
         net->to(torch::kFloat64);
       }},
      {"torch::load",
       [](nn::Sequential& net) {
         auto other = plain_network(torch::kFloat64);
         torch::NoGradGuard no_grad;
         for (auto& p : other->parameters()) p.mul_(0.5);
         std::stringstream stream;
         torch::save(other, stream);
         torch::load(net, stream);
       }},
  };
  for (auto const& way : ways) {
    CAPTURE(way.first);
    auto net = plain_network(dtype), twin = plain_network(dtype);
    Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}};
    torch::optim::SGD sgd(twin->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
    learner.fit(experience, training);
    train_by_hand(twin, sgd, experience, 10);
    way.second(net), way.second(twin);
    learner.fit(experience, training);
    train_by_hand(twin, sgd, experience, 10);
    CHECK(same_bits(copies(*net), copies(*twin)));
    CHECK(learner.context().arena.bound());
    net->eval(), twin->eval();
    auto const x = torch::ones({2, 5}, dtype);
    CHECK(learner.scores(x).equal(twin->forward(x)));
  }
}

namespace {

/// Two layers by name, one of which may be replaced.
struct PairImpl : nn::Module {
  PairImpl() {
    first = register_module("first", nn::Linear(5, 7));
    last = register_module("last", nn::Linear(7, 3));
  }
  Tensor forward(Tensor const& x) { return last(first(x).tanh()); }
  nn::Linear first{nullptr}, last{nullptr};
};
TORCH_MODULE(Pair);

}  // namespace

TEST_CASE("what is stored per parameter follows layers that are replaced or frozen") {
  auto const experience = rows(40, torch::kFloat64);
  Training const training{.epochs = 2, .batch_size = 8, .shuffle = false};
  for (std::int64_t const width : {7, 4}) {
    CAPTURE(width);
    Pair net;
    net->to(torch::kFloat64);
    draw_weights(*net);
    Learner learner{net, Adam{.lr = 0.01}};
    learner.fit(experience, training);
    auto const moments = [&](char const* layer) {
      std::vector<Tensor> found;
      auto const& arena = learner.context().arena;
      for (std::size_t i = 0; i < arena.layout().size(); ++i) {
        if (arena.layout()[i].name.rfind(layer, 0) != 0) continue;
        found.push_back(arena.parameter_view(learner.optimizer().first, i).clone());
      }
      return found;
    };
    auto const last = moments("last.bias");
    // Same names, another first layer: one row more or less of the last, or none.
    nn::Linear fresh(5, width), head(width, 3);
    fresh->to(torch::kFloat64), head->to(torch::kFloat64);
    net->first = net->replace_module("first", fresh);
    if (width != 7) net->last = net->replace_module("last", head);
    learner.scores(torch::ones({1, 5}));
    CHECK(moments("first.weight")[0].sizes() == torch::IntArrayRef{width, 5});
    CHECK(same_bits(moments("last.bias"), last));
    if (width != 7) CHECK(moments("last.weight")[0].abs().max().item<double>() == 0);
    auto const before = copies(*net);
    learner.fit(experience, training);
    for (std::size_t i = 0; i < before.size(); ++i) CHECK_FALSE(before[i].equal(copies(*net)[i]));
  }

  Pair net;
  net->to(torch::kFloat64);
  draw_weights(*net);
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}};
  learner.fit(experience, training);
  for (auto& p : net->first->parameters()) p.set_requires_grad(false);
  auto const frozen = copies(*net->first), moving = copies(*net->last);
  auto const velocity = learner.optimizer().velocity.clone();
  auto const layout = learner.context().arena.layout();
  learner.scores(torch::ones({1, 5}));
  auto const& arena = learner.context().arena;
  REQUIRE(arena.layout().size() == 2);
  CHECK(arena.parameter_view(learner.optimizer().velocity, 0)
            .equal(velocity.narrow(0, layout[2].offset, layout[2].size).view({3, 7})));
  learner.fit(experience, training);
  CHECK(same_bits(copies(*net->first), frozen));
  CHECK_FALSE(same_bits(copies(*net->last), moving));
  CHECK_THROWS_AS(learner.roll_back({}), Error);
}

TEST_CASE("the arena keeps its parameters when a module cannot be bound") {
  auto net = plain_network(torch::kFloat32);
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}};
  learner.fit(rows(16, torch::kFloat32), {.batch_size = 8});
  auto const velocity = learner.optimizer().velocity.clone();
  net[2]->to(torch::kFloat64);
  CHECK(contains(message_of([&] { learner.fit(rows(16, torch::kFloat32), {.batch_size = 8}); }),
                 "one floating type"));
  net[2]->to(torch::kFloat32);
  learner.scores(torch::ones({1, 5}));
  CHECK(learner.optimizer().velocity.equal(velocity));
}

TEST_CASE("learners that train at the same time give the results of each alone") {
  auto const run = [](std::uint64_t seed, std::function<void()> const& between) {
    nn::Sequential net(nn::Linear(5, 7), nn::BatchNorm1d(7), nn::Dropout(0.3), nn::Linear(7, 3));
    draw_weights(*net);
    Learner learner{net, Adam{.lr = 0.01}};
    learner.seed({seed});
    struct Between {
      std::function<void()> call;
      void step(Context const&) { call(); }
    };
    learner.fit(rows(32, torch::kFloat32), {.epochs = 2, .batch_size = 8}, Between{between});
    return copies(*net);
  };
  std::vector<Tensor> inner;
  auto const nothing = [] {};
  auto const outer = run(1, [&] { inner = run(2, nothing); });
  CHECK(same_bits(outer, run(1, nothing)));
  CHECK(same_bits(inner, run(2, nothing)));
  CHECK_FALSE(same_bits(inner, outer));
}

TEST_CASE("mistakes leave the learner as usable as before") {
  auto const good = rows(40, torch::kFloat32);
  Training const training{.epochs = 2, .batch_size = 8};
  auto const norm = [] {
    nn::Sequential net(nn::Linear(5, 7), nn::BatchNorm1d(7), nn::Linear(7, 3));
    draw_weights(*net);
    return net;
  };
  auto undisturbed = norm();
  Learner plain{undisturbed, Adam{.lr = 0.01}};
  plain.fit(good, training);

  auto const x = torch::zeros({16, 5});
  auto const y = torch::arange(16, torch::kInt64) % 3;
  auto const of = [&](Tensor const& inputs, Tensor const& labels) {
    return make_experience(inputs, labels, {0, 1, 2});
  };
  auto bad = x.clone();
  bad[3][2] = INFINITY;
  auto half = of(x, y), sourceless = of(x, y), negative = of(x, y), on_float = of(x, y);
  half.train.labels = half.train.labels.slice(0, 0, 8);
  sourceless.train.source = nullptr;
  negative.classes = {0, -3};
  on_float.train.labels = on_float.train.labels.to(torch::kFloat32);
  struct Case {
    std::string sentence;
    std::function<void(Learner<nn::Sequential, Adam, StrategySet<>>&)> mistake;
  };
  std::vector<Case> const cases{
      {"NaN or infinity", [&](auto& l) { l.fit(of(bad, y), training); }},
      {"label -1", [&](auto& l) { l.fit(of(x, y - 1), training); }},
      {"label -3", [&](auto& l) { l.fit(negative, training); }},
      {"no training rows", [&](auto& l) { l.fit({}, training); }},
      {"no training rows",
       [&](auto& l) { l.fit(of(x.slice(0, 0, 0), y.slice(0, 0, 0)), training); }},
      {"of one length", [&](auto& l) { l.fit(half, training); }},
      {"of one length", [&](auto& l) { l.fit(sourceless, training); }},
      {"of one length", [&](auto& l) { l.fit(on_float, training); }},
      {"labels must be integers", [&](auto& l) { l.fit(of(x, y.to(torch::kFloat32)), training); }},
      {"do not pair up", [&](auto& l) { l.fit(of(x, y.slice(0, 0, 8)), training); }},
      {"smaller batch_size", [&](auto& l) { l.fit(good, {.batch_size = 41}); }},
      {"batch (or shard) of one row", [&](auto& l) { l.fit(good, {.batch_size = 13}); }},
      {"batch (or shard) of one row",
       [&](auto& l) { l.fit(good, {.batch_size = 8, .shards = 5}); }},
      {"fewer shards", [&](auto& l) { l.fit(good, {.batch_size = 8, .shards = 9}); }},
      {"'passes' is '0'", [&](auto& l) { l.fit(good, {.batch_size = 8, .passes = 0}); }},
      {"at least one row",
       [](auto& l) {
         l.predict(torch::zeros({0, 5}));
       }},
      {"at least one row", [](auto& l) { l.predict({}); }},
      {"failed on inputs [2, 4]",
       [](auto& l) {
         l.predict(torch::zeros({2, 4}));
       }},
      {"failed on inputs [2, 5, 1]",
       [](auto& l) {
         l.scores(torch::zeros({2, 5, 1}));
       }},
  };
  auto net = norm();
  Learner learner{net, Adam{.lr = 0.01}};
  for (auto const& each : cases) {
    CAPTURE(each.sentence);
    auto const message = message_of([&] { each.mistake(learner); });
    CHECK(contains(message, each.sentence));
    CHECK(message.rfind("pawl: ", 0) == 0);
  }
  CHECK(learner.context().seen.empty());
  learner.fit(good, training);
  CHECK(same_bits(copies(*net), copies(*undisturbed)));

  // Found in the first forward pass, when heads were already told of the classes.
  auto const fails = [&](nn::Sequential const& module, Experience const& experience) {
    Learner other{module, Sgd{}};
    auto const start = copies(*module);
    auto const message = message_of([&] { other.fit(experience, training); });
    CHECK(other.context().experience == nullptr);
    CHECK(same_bits(copies(*module), start));
    return message;
  };
  auto const late = torch::cat({torch::zeros({15}, torch::kInt64), torch::full({1}, 3)});
  CHECK(contains(fails(plain_network(torch::kFloat32), make_experience(x, late)),
                 "label 3 but the model has 3 outputs"));
  CHECK(contains(fails(plain_network(torch::kFloat32), make_experience(torch::zeros({16, 6}), y)),
                 "failed on inputs [8, 6]"));
  CHECK(contains(
      fails(nn::Sequential(nn::Conv1d(1, 2, 3)), make_experience(torch::zeros({16, 1, 5}), y)),
      "must return logits [N, C]"));
  CHECK(contains(message_of([] { Learner{nn::Linear{nullptr}, Sgd{}}; }), "the model is empty"));
  CHECK(contains(message_of([] {
                   Learner{std::shared_ptr<nn::LinearImpl>(), Sgd{}};
                 }),
                 "the model is empty"));
  nn::Sequential mixed(nn::Linear(5, 7), nn::Linear(7, 3));
  mixed[1]->to(torch::kFloat64);
  CHECK(contains(message_of([&] { Learner{mixed, Sgd{}}; }), "one floating type"));
}

TEST_CASE("predicting before the first fit chooses among all outputs") {
  auto net = plain_network(torch::kFloat32);
  Learner learner{net, Sgd{}};
  auto const x = rows(8, torch::kFloat32).train.read(torch::arange(8)).stored;
  CHECK(learner.predict(x).equal(net->forward(x).argmax(1)));
  Learner grows{growing_network(torch::kFloat32, 0), Sgd{}};
  CHECK(contains(message_of([&] { grows.predict(x); }), "no classes yet"));
}

TEST_CASE("a step that fails in its midst leaves weights and optimizer alone") {
  auto const experience = rows(40, torch::kFloat32);
  for (std::int64_t const shards : {1, 3}) {
    CAPTURE(shards);
    auto net = plain_network(torch::kFloat32), twin = plain_network(torch::kFloat32);
    Learner broken{net, Adam{.lr = 0.01}, Stops{.at = 3}}, whole{twin, Adam{.lr = 0.01}, Stops{}};
    Training const training{.batch_size = 8, .shards = shards};
    CHECK_THROWS_AS(broken.fit(experience, training), Stop);
    CHECK(broken.context().experience == nullptr);
    whole.fit(experience, {.iterations = 3, .batch_size = 8, .shards = shards});
    CHECK(same_bits(copies(*net), copies(*twin)));
    CHECK(broken.optimizer().first.equal(whole.optimizer().first));
    // Given again, it begins anew, with the same past.
    broken.strategy<Stops>().at = -1;
    broken.fit(experience, training);
    CHECK(broken.context().old_classes.empty());
    CHECK(broken.context().step == 5);
  }
}

TEST_CASE("a loss of NaN says where it came from, with shards too") {
  for (std::int64_t const shards : {1, 2}) {
    auto net = plain_network(torch::kFloat64), twin = plain_network(torch::kFloat64);
    Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}, NotANumber{}};
    Learner shorter{twin, Sgd{.lr = 0.1, .momentum = 0.9}, NotANumber{}};
    auto const experience = rows(40, torch::kFloat64, 1, false, 4);
    shorter.fit(experience, {.iterations = 2, .batch_size = 8, .shards = shards});
    try {
      learner.fit(experience, {.batch_size = 8, .shards = shards});
      FAIL("no error");
    } catch (Diverged const& error) {
      CHECK(error.experience == 4);
      CHECK(error.step == 2);
      CHECK(std::isfinite(error.task_loss));
      REQUIRE(error.penalties.size() == 1);
      CHECK(error.penalties[0].first == "not_a_number");
      CHECK(std::isnan(error.penalties[0].second));
    }
    CHECK(same_bits(copies(*net), copies(*twin)));
    CHECK(learner.optimizer().velocity.equal(shorter.optimizer().velocity));
  }
  auto net = plain_network(torch::kFloat32);
  Learner explodes{net, Sgd{.lr = 3e38}};
  try {
    explodes.fit(rows(80, torch::kFloat32), {.epochs = 3, .batch_size = 8});
    FAIL("no error");
  } catch (Diverged const& error) {
    CHECK_FALSE(std::isfinite(error.task_loss));
    CHECK(error.penalties.empty());
    CHECK(contains(error.what(), "in experience 0, step"));
  }
  Learner vector{plain_network(torch::kFloat32), Sgd{}, Vector{}};
  CHECK(contains(message_of([&] { vector.fit(rows(16, torch::kFloat32), {.batch_size = 8}); }),
                 "'vector' has shape [8, 3]; it must be one number"));
}

TEST_CASE("an experience may be learned twice, and counts as one more") {
  auto net = plain_network(torch::kFloat32);
  Learner learner{net, Sgd{.lr = 0.1}};
  auto const experience = rows(40, torch::kFloat32);
  learner.fit(experience, {.batch_size = 8});
  CHECK(learner.context().old_classes.empty());
  learner.fit(experience, {.batch_size = 8});
  CHECK(learner.context().old_classes == std::vector<std::int64_t>{0, 1, 2});
  CHECK(learner.context().total_steps == 10);
}

TEST_CASE("values are added in a fixed binary tree, whatever their number") {
  auto const value = [](std::int64_t i) { return torch::full({}, 1.0 / (3 + i * i)).pow(3); };
  std::function<Tensor(std::int64_t, std::int64_t)> const tree = [&](std::int64_t begin,
                                                                     std::int64_t end) {
    if (end - begin == 1) return value(begin);
    std::int64_t half = 1;  // the largest power of two that leaves something
    while (2 * half < end - begin) half *= 2;
    return tree(begin, begin + half) + tree(begin + half, end);
  };
  TreeSum sum;
  for (std::int64_t n = 1; n < 40; ++n) {
    for (std::int64_t i = 0; i < n; ++i) sum.add(value(i));
    CHECK(sum.take().equal(tree(0, n)));
  }
  CHECK_FALSE(sum.take().defined());
}

TEST_CASE("a short last batch that is never reached is no obstacle") {
  nn::Sequential net(nn::Linear(5, 7), nn::BatchNorm1d(7), nn::Linear(7, 3));
  Learner learner{net, Sgd{}};
  CHECK_NOTHROW(learner.fit(rows(41, torch::kFloat32), {.iterations = 5, .batch_size = 8}));
  CHECK_THROWS_AS(learner.fit(rows(41, torch::kFloat32), {.iterations = 6, .batch_size = 8}),
                  Error);
}

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// A network whose mask is a buffer that holds infinities, beside one of booleans.
struct MaskedImpl : nn::Module {
  MaskedImpl() {
    layer = register_module("layer", nn::Linear(5, 3));
    mask = register_buffer("mask", torch::tensor({0., 0., -infinity}, torch::kFloat64));
    flags = register_buffer("flags", torch::tensor({true, true, false}));
    layer->to(torch::kFloat64);
    draw_weights(*layer);
  }
  Tensor forward(Tensor const& x) {
    return torch::where(flags, layer(x), mask - 30).clamp_min(-30);
  }
  nn::Linear layer{nullptr};
  Tensor mask, flags;
};
TORCH_MODULE(Masked);

/// One layer under two names.
struct TiedImpl : nn::Module {
  TiedImpl() {
    first = register_module("first", nn::Linear(5, 5));
    again = register_module("again", first);
    last = register_module("last", nn::Linear(5, 3));
    to(torch::kFloat64);
    draw_weights(*first);
    draw_weights(*last);
  }
  Tensor forward(Tensor const& x) { return last(torch::tanh(again(torch::tanh(first(x))))); }
  nn::Linear first{nullptr}, again{nullptr}, last{nullptr};
};
TORCH_MODULE(Tied);

}  // namespace

TEST_CASE("buffers that no shard moves stay as they are, whatever they hold") {
  Masked net;
  Learner learner{net, Sgd{.lr = 0.1}};
  learner.fit(rows(16, torch::kFloat64), {.batch_size = 8, .shards = 2});
  CHECK(net->mask.equal(torch::tensor({0., 0., -infinity}, torch::kFloat64)));
  CHECK(net->flags.equal(torch::tensor({true, true, false})));
}

TEST_CASE("a layer that is registered twice is trained once a step") {
  Tied net, twin;
  Learner learner{net, Sgd{.lr = 0.1, .momentum = 0.9}};
  CHECK(learner.context().arena.parameters().size() == 4);
  auto const experience = rows(24, torch::kFloat64);
  learner.fit(experience, {.batch_size = 8, .shuffle = false});
  CHECK_FALSE(learner.context().arena.ensure(*net));
  std::vector<Tensor> parameters = twin->last->parameters();
  for (auto const& p : twin->first->parameters()) parameters.push_back(p);
  torch::optim::SGD sgd(parameters, torch::optim::SGDOptions(0.1).momentum(0.9));
  auto const x = read_all(*experience.train.source);
  for (std::int64_t begin = 0; begin < 24; begin += 8) {
    sgd.zero_grad();
    auto const z = twin->forward(x.narrow(0, begin, 8));
    torch::cross_entropy_loss(z, experience.train.labels.narrow(0, begin, 8)).backward();
    sgd.step();
  }
  CHECK(torch::allclose(net->first->weight, twin->first->weight, 0, 1e-12));
  CHECK(torch::allclose(net->last->weight, twin->last->weight, 0, 1e-12));
}

TEST_CASE("a list of strategies may be checked again, and a begin that failed be tried again") {
  struct Owner {
    bool fails = true;
    void begin(Context& c, Experience const&) {
      old = c.old_classes;
      if (fails) throw Error("not yet");
    }
    Tensor loss(Context& c) { return c.weighted_cross_entropy(); }
    std::vector<std::int64_t> old{};
  };
  StrategyList list(std::vector<AnyStrategy>{Owner{}});
  list.check();
  CHECK_NOTHROW(list.check());
  auto net = plain_network(torch::kFloat64);
  Learner learner{net, Sgd{}, Owner{}};
  CHECK_THROWS_WITH_AS(learner.fit(rows(8, torch::kFloat64), {.batch_size = 8}), "not yet", Error);
  learner.strategy<Owner>().fails = false;
  learner.fit(rows(8, torch::kFloat64), {.batch_size = 8});
  CHECK(learner.strategy<Owner>().old.empty());
}

TEST_CASE("inputs may be shifted without being divided, and divided without being shifted") {
  auto const x = torch::arange(6, torch::kFloat64).view({1, 2, 3});
  using List = std::vector<double>;
  auto const of = [&](List mean, List deviation) {
    return Normalise{.mean = std::move(mean), .deviation = std::move(deviation)}(x,
                                                                                 torch::kFloat64);
  };
  auto const channels = torch::tensor({1., 2.}, torch::kFloat64).view({1, 2, 1});
  CHECK(of({}, {4}).equal(x / 4));
  CHECK(of({3}, {}).equal(x - 3));
  CHECK(of({}, {1, 2}).equal(x / channels));
  CHECK(of({1, 2}, {}).equal(x - channels));
  CHECK(of({1, 2}, {4}).equal((x - channels) / 4));
  CHECK_THROWS_WITH_AS(of({}, {1, 2, 3}), doctest::Contains("3 deviations for inputs [1, 2, 3]"),
                       Error);
}
