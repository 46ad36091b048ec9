// What a checkpoint holds, and how a learner refuses those that are not its own.

#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "messages.hpp"
#include "named.hpp"

#include <torch/nn/modules/activation.h>
#include <pawl/core/any_learner.hpp>
#include <pawl/heads/growing.hpp>
#include <pawl/heads/multi_head.hpp>

#include <sys/resource.h>

#include <doctest/doctest.h>  // after LibTorch, whose own CHECK must not win

using namespace pawl;

namespace {

namespace fs = std::filesystem;

/// A folder that is there for one test.
struct Folder {
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  fs::path operator/(char const* name) const { return path / name; }
  fs::path path = fs::temp_directory_path() / "pawl_checkpoint_test";
};

std::string bytes_of(fs::path const& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(fs::path const& path, std::string const& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

template <class L>
std::string saved(L& learner, Folder const& folder) {
  auto const path = folder / "saved";
  learner.save(path);
  return bytes_of(path);
}

Experience rows(std::int64_t index = 0, std::int64_t classes = 3, std::int64_t task = -1,
                torch::Dtype dtype = torch::kFloat32, std::int64_t n = 36) {
  auto x = torch::empty({n, 4}, dtype);
  fill_normal(x, 0, 1, Seed{1}.generator("x", index));
  return make_experience(x, torch::arange(n, torch::kInt64) % classes, {}, index, task);
}

template <class... Layers>
nn::Sequential with_weights(Layers... layers) {
  nn::Sequential net(layers...);
  std::int64_t i = 0;
  for (auto& p : net->parameters()) fill_normal(p, 0, 0.5, Seed{7}.generator("net", i++));
  return net;
}
nn::Sequential linear(std::int64_t hidden = 8, std::int64_t outputs = 3) {
  return with_weights(nn::Linear(4, hidden), nn::Tanh(), nn::Linear(hidden, outputs));
}
nn::Sequential growing(std::int64_t hidden = 8, std::int64_t classes = 0) {
  return with_weights(nn::Linear(4, hidden), nn::Tanh(), GrowingHead(hidden, classes));
}
nn::Sequential multi(std::int64_t outputs, std::int64_t hidden = 8) {
  return with_weights(nn::Linear(4, hidden), nn::Tanh(), MultiHead(hidden, outputs));
}

Training const usual{.epochs = 2, .batch_size = 9};

/// Follows the growth of the model, and counts.
struct Trace {
  double decay = 0.9;
  static constexpr char const* name = "trace";
  void describe(Options& o) { o("decay", decay, between(0, 1), "of the mean"); }
  void after_step(Context& c) {
    if (!mean.defined()) mean = torch::zeros_like(c.weights());
    mean.mul_(decay).add_(c.weights(), 1 - decay);
    rate = 0.5 * rate + 1;
  }
  void state(Archive& a) {
    a.flat("mean", mean);
    a("rate", rate);
  }
  Tensor mean{};
  double rate = 0;
};
/// The same name and hook, and other things to remember.
struct OtherTrace {
  static constexpr char const* name = "trace";
  void after_step(Context&) { ++steps; }
  void state(Archive& a) { a("steps", steps); }
  std::int64_t steps = 0;
};

struct Saves {
  std::function<void()> save;
  std::int64_t at = 3;
  void step(Context const& c) {
    if (c.step == at) save();
  }
};

}  // namespace

TEST_CASE(
    "a checkpoint with any bit flipped, or cut at any length, is refused and changes nothing") {
  Folder const folder;
  auto const net = [] { return with_weights(nn::Linear(4, 1), nn::Linear(1, 3)); };
  Learner learner{net(), Sgd{.momentum = 0.9}, Trace{}};
  learner.fit(rows(), usual);
  auto const whole = saved(learner, folder);
  auto const path = folder / "damaged";

  Learner other{net(), Sgd{.momentum = 0.9}, Trace{}};
  other.fit(rows(1), {.batch_size = 6});
  auto const before = saved(other, folder);
  auto const refused = [&](std::string const& bytes) {
    write(path, bytes);
    auto const message = message_of([&] { other.load(path); });
    return contains(message, "is truncated or altered; use another copy");
  };
  std::int64_t accepted = 0;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      auto flipped = whole;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << bit));
      accepted += !refused(flipped);
    }
  }
  CHECK(accepted == 0);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    accepted += !refused(whole.substr(0, length));
  }
  CHECK(accepted == 0);
  CHECK(refused(whole + "x"));
  CHECK(refused(""));
  CHECK(saved(other, folder) == before);
  write(path, whole);
  other.load(path);
  CHECK(saved(other, folder) == whole);
}

TEST_CASE("a header that lies about sizes is refused, whatever its checksum") {
  Folder const folder;
  auto const path = folder / "lies";
  auto const with_header = [&](std::string const& tensors, std::string const& data) {
    auto header = std::string(pawl::detail::checkpoint_start) + "00000000\"}" + tensors + "}";
    auto const length = static_cast<std::uint64_t>(header.size());
    std::string bytes(sizeof length, '\0');
    std::memcpy(bytes.data(), &length, sizeof length);
    bytes += header + data;
    bytes.replace(sizeof length + pawl::detail::checkpoint_start.size(), 8,
                  pawl::detail::checksum({bytes}));
    write(path, bytes);
    return message_of([&] { read_checkpoint(path); });
  };
  auto const tensor = [](std::string const& shape, std::string const& offsets,
                         std::string const& dtype = "F32") {
    return ",\"a\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape + "],\"data_offsets\":[" +
           offsets + "]}";
  };
  CHECK(with_header(tensor("2", "0,8"), "12345678").empty());
  CHECK(with_header(tensor("", "0,4"), "1234").empty());
  CHECK(with_header(tensor("0,5", "0,0"), "").empty());
  CHECK(with_header(tensor("5,0", "0,0"), "").empty());
  for (auto const& lie :
       {tensor("3", "0,8"), tensor("2", "0,9"), tensor("2", "8,0"), tensor("2", "1,9"),
        tensor("4611686018427387904", "0,8"), tensor("4294967296,4294967296", "0,0"),
        tensor("2,0", "0,8"), tensor("-2", "0,8"), tensor("2", "0,99999999999999999999"),
        tensor("2", "0"), tensor("2", "0,8", "F31"), std::string(",\"a\":1"), std::string(",\"a\""),
        std::string(",\"a\":{"), std::string(",\"\\u00\":{}"), std::string(",")}) {
    CAPTURE(lie);
    CHECK(contains(with_header(lie, "12345678"), "truncated or altered"));
  }
}

TEST_CASE("texts and numbers of every kind survive a checkpoint") {
  Folder const folder;
  Archive out(Archive::Mode::save);
  std::string const text = "quote \" backslash \\ line\nbreak \x01 end \xc3\xa9";
  auto written = text;
  double third = 1.0 / 3, infinite = -INFINITY;
  std::int64_t least = std::numeric_limits<std::int64_t>::min();
  bool yes = true;
  std::vector<std::int64_t> list{3, -1}, none;
  out("text \" key", written);
  out("third", third), out("infinite", infinite), out("least", least), out("yes", yes);
  out("list", list), out("none", none);
  std::vector<Tensor> tensors;
  for (auto const dtype : {torch::kFloat64, torch::kFloat16, torch::kBFloat16, torch::kInt32,
                           torch::kInt16, torch::kInt8, torch::kUInt8, torch::kBool}) {
    tensors.push_back(torch::arange(6).view({2, 3}).to(dtype).t());
    out("tensor" + std::to_string(tensors.size()), tensors.back());
  }
  auto empty = torch::zeros({0, 3}), undefined = Tensor();
  out("empty", empty), out("undefined", undefined);
  write_checkpoint(folder / "kinds", out);

  auto in = read_checkpoint(folder / "kinds");
  CHECK(in.texts == out.texts);
  std::string read;
  in("text \" key", read);
  CHECK(read == text);
  third = infinite = 0, least = 0, yes = false, list.clear(), none = {1};
  in("third", third), in("infinite", infinite), in("least", least), in("yes", yes);
  in("list", list), in("none", none);
  CHECK(third == 1.0 / 3);
  CHECK(infinite == -INFINITY);
  CHECK(least == std::numeric_limits<std::int64_t>::min());
  CHECK(yes);
  CHECK(list == std::vector<std::int64_t>{3, -1});
  CHECK(none.empty());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    Tensor tensor;
    in("tensor" + std::to_string(i + 1), tensor);
    CHECK(tensor.dtype() == tensors[i].dtype());
    CHECK(tensor.equal(tensors[i]));
  }
  Tensor back;
  in("empty", back);
  CHECK(back.sizes() == torch::IntArrayRef{0, 3});
  in("undefined", back);
  CHECK_FALSE(back.defined());
  CHECK_NOTHROW(in.require_all_loaded("-"));
  CHECK(contains(message_of([&] { in("nothing", third); }), "has no 'nothing'"));
  CHECK(contains(message_of([&] { in("nothing", list); }), "has no 'nothing'"));
  CHECK(contains(message_of([&] { in("nothing", read); }), "has no 'nothing'"));
}

TEST_CASE("the checkpoint of another learner is refused, and this one is left as it was") {
  Folder const folder;
  auto const path = folder / "of_another";
  // Trains `from`, and tells what `into` says to its checkpoint; the bytes of `into` must not
  // change, nor its future.
  auto const refusal = [&](auto& from, auto& into, std::int64_t task = -1) {
    from.fit(rows(0, 3, task), usual);
    from.save(path);
    auto const before = saved(into, folder);
    auto const message = message_of([&] { into.load(path); });
    CHECK(saved(into, folder) == before);
    return message;
  };
  auto const trained = [&](auto learner) {
    learner.fit(rows(0, 2), usual);
    return learner;
  };
  Learner from{linear(), Sgd{.momentum = 0.9}, Trace{}};
  {
    auto into = trained(Learner{linear(), Adam{}, Trace{}});
    CHECK(contains(refusal(from, into), "but this learner is"));
  }
  {
    auto into = trained(Learner{linear(), Sgd{.momentum = 0.9}});
    CHECK(contains(refusal(from, into), "build the same composition first"));
  }
  {
    auto into = trained(Learner{linear(8, 5), Sgd{.momentum = 0.9}, Trace{}});
    CHECK(contains(refusal(from, into), "'model.2.weight' [3, 8] Float does not fit this model"));
  }
  {
    auto net = linear();
    net->to(torch::kFloat64);
    Learner into{net, Sgd{.momentum = 0.9}, Trace{}};
    CHECK(contains(refusal(from, into), "does not fit this model"));
  }
  {
    nn::Sequential shorter = with_weights(nn::Linear(4, 8), nn::Tanh());
    Learner into{shorter, Sgd{.momentum = 0.9}, Trace{}};
    CHECK(contains(refusal(from, into), "which this model lacks"));
  }
  {
    auto longer =
        with_weights(nn::Linear(4, 8), nn::Tanh(), nn::Linear(8, 3), nn::Tanh(), nn::Linear(3, 3));
    Learner into{longer, Sgd{.momentum = 0.9}, Trace{}};
    CHECK(contains(refusal(from, into), "which this model has"));
  }
  {
    auto into = trained(Learner{linear(), Sgd{.momentum = 0.9}, OtherTrace{}});
    CHECK(contains(refusal(from, into), "has no 'strategies.0.trace.steps'"));
    CHECK(into.template strategy<OtherTrace>().steps == 8);
  }
  {
    Learner other{linear(), Sgd{}, OtherTrace{}};
    auto into = trained(Learner{linear(), Sgd{}, Trace{}});
    CHECK(contains(refusal(other, into), "build the same learner first"));
  }
  for (std::int64_t const hidden : {4, 8}) {  // growing heads, before and after they know classes
    CAPTURE(hidden);
    Learner grown{growing(), Adam{}, Trace{}};
    Learner into{growing(hidden), Adam{}, OtherTrace{}};
    CHECK_FALSE(refusal(grown, into).empty());
    CHECK(into.context().arena.layout().back().size == 0);
  }
  {
    auto net = linear();
    net->parameters()[0].set_requires_grad(false);
    Learner frozen{net, Adam{}};
    Learner whole{linear(), Adam{}};
    CHECK(contains(refusal(frozen, whole), "freeze the same parameters as there"));
    CHECK(refusal(whole, whole).empty());
  }
  {
    Learner small{growing(), Sgd{.momentum = 0.9}, Trace{}};
    Learner into{growing(8, 5), Sgd{.momentum = 0.9}, Trace{}};
    CHECK(contains(refusal(small, into), "'model.2.weight' [3, 8] Float does not fit this model"));
  }
  {
    Learner two{multi(2), Sgd{}};
    two.fit(rows(0, 2, 0), usual);
    Learner three{multi(3), Sgd{}};
    auto const other = message_of([&] { two.save(path), three.load(path); });
    CHECK(contains(other, "does not fit this model"));
    three.fit(rows(0, 3, 0), usual);
    CHECK(contains(refusal(three, two, 1), "label 2 but every head has 2 outputs"));
  }
}

TEST_CASE("a refusal that comes after heads made room still keeps moments and weights") {
  Folder const folder;
  auto const path = folder / "of_another";
  // Built with ten outputs, of which three are ever announced: the heads cannot know.
  Learner from{growing(8, 10), Adam{.lr = 0.01}, Trace{}};
  from.fit(rows(), usual);
  from.save(path);
  auto net = growing(), twin = growing();
  Learner into{net, Adam{.lr = 0.01}, Trace{}}, untouched{twin, Adam{.lr = 0.01}, Trace{}};
  into.fit(rows(0, 2), usual), untouched.fit(rows(0, 2), usual);
  CHECK(contains(message_of([&] { into.load(path); }), "[10, 8] Float does not fit this model"));
  into.fit(rows(1, 3), usual), untouched.fit(rows(1, 3), usual);
  for (std::size_t i = 0; i < net->parameters().size(); ++i) {
    CHECK(net->parameters()[i].equal(twin->parameters()[i]));
  }
  CHECK(into.strategy<Trace>().mean.equal(untouched.strategy<Trace>().mean));
  CHECK(into.optimizer().second.equal(untouched.optimizer().second));
}

TEST_CASE("an option is no state: a checkpoint loads under another decay and learning rate") {
  Folder const folder;
  Learner from{linear(), Adam{.lr = 0.01}, Trace{.decay = 0.5}};
  from.fit(rows(), usual);
  from.save(folder / "options");
  Learner into{linear(), Adam{.lr = 0.5}, Trace{.decay = 0.7}};
  into.load(folder / "options");
  CHECK(into.optimizer().lr == 0.5);
  CHECK(into.strategy<Trace>().decay == 0.7);
  CHECK(into.strategy<Trace>().mean.equal(from.strategy<Trace>().mean));
}

TEST_CASE("a continued experience must be the one that was started, under the same plan") {
  Folder const folder;
  auto const path = folder / "middle";
  auto net = linear(), twin = linear();
  auto const replay = named("replay", {{"capacity", "20"}});
  auto whole = learner_of(net, Adam{.lr = 0.01}, {replay});
  whole.fit(rows(), usual, Saves{[&] { whole.save(path); }});

  auto resumed = learner_of(twin, Adam{.lr = 0.01}, {replay});
  resumed.load(path);
  auto const refused = [&](Experience const& experience, Training const& training) {
    return message_of([&] { resumed.fit(experience, training); });
  };
  CHECK(contains(refused(rows(1), usual), "continue with experience 0"));
  CHECK(contains(refused(rows(), {.epochs = 2, .batch_size = 8}),
                 "cannot be continued with rows 36, batch_size 8"));
  CHECK(contains(refused(rows(), {.epochs = 2, .batch_size = 9, .shards = 2}), "shards 2"));
  CHECK(contains(refused(rows(), {.epochs = 2, .batch_size = 9, .passes = 2}), "passes 2"));
  CHECK(contains(refused(rows(), {.epochs = 2, .batch_size = 9, .shuffle = false}), "shuffle 0"));
  CHECK(contains(refused(rows(0, 3, -1, torch::kFloat32, 45), usual), "with rows 45"));
  CHECK(contains(refused({}, usual), "no training rows"));
  CHECK(resumed.context().step == 3);
  resumed.fit(rows(), usual);
  for (std::size_t i = 0; i < net->parameters().size(); ++i) {
    CHECK(net->parameters()[i].equal(twin->parameters()[i]));
  }
  CHECK(resumed.context().step == 8);
}

TEST_CASE("a run may be extended by more epochs than it was started with") {
  Folder const folder;
  auto const path = folder / "middle";
  auto net = linear(), twin = linear();
  Learner shorter{twin, Adam{.lr = 0.01}}, longer{net, Adam{.lr = 0.01}};
  longer.fit(rows(), {.epochs = 5, .batch_size = 9});
  shorter.fit(rows(), usual, Saves{[&] { shorter.save(path); }, 8});
  shorter.load(path);
  shorter.fit(rows(), {.epochs = 5, .batch_size = 9});
  for (std::size_t i = 0; i < net->parameters().size(); ++i) {
    CHECK(net->parameters()[i].equal(twin->parameters()[i]));
  }
}

TEST_CASE("a checkpoint is written whole or not at all") {
  Folder const folder;
  auto const path = folder / "kept";
  Learner learner{linear(200), Adam{}};
  learner.fit(rows(), usual);
  learner.save(path);
  auto const old = bytes_of(path);
  learner.fit(rows(1), usual);

  // A disk that is full after four kilobytes.
  rlimit found{}, full{4096, RLIM_INFINITY};
  REQUIRE(getrlimit(RLIMIT_FSIZE, &found) == 0);
  full.rlim_max = found.rlim_max;
  auto const handler = std::signal(SIGXFSZ, SIG_IGN);
  REQUIRE(setrlimit(RLIMIT_FSIZE, &full) == 0);
  auto const onto = message_of([&] { learner.save(path); });
  auto const anew = message_of([&] { learner.save(folder / "new"); });
  setrlimit(RLIMIT_FSIZE, &found);
  std::signal(SIGXFSZ, handler);
  CHECK(contains(onto, "cannot write '"));
  CHECK(contains(anew, "File too large"));
  CHECK(bytes_of(path) == old);
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 1);

  CHECK(contains(message_of([&] { learner.save(folder.path / "none" / "x"); }), "cannot create"));
  CHECK_FALSE(fs::exists(folder.path / "none"));
  fs::create_directories(folder / "occupied");
  CHECK(contains(message_of([&] { learner.save(folder / "occupied"); }), "cannot write"));
  CHECK(fs::is_directory(folder / "occupied"));
  CHECK(contains(message_of([&] { learner.load(folder / "occupied"); }), "cannot be read"));
  CHECK(contains(message_of([&] { learner.load(folder / "none"); }), "cannot be read"));
  CHECK(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()) == 2);
  learner.save(path);
  CHECK(bytes_of(path) != old);
}

TEST_CASE("property 48: a checkpoint is as large as what it holds, within 5 %") {
  Folder const folder;
  auto net = linear(4000);
  auto learner = learner_of(net, Adam{}, {named("replay", {{"capacity", "2000"}}), named("ewc")});
  learner.fit(rows(0, 3, -1, torch::kFloat32, 3000), {.batch_size = 100});
  learner.save(folder / "size");
  double held = static_cast<double>(learner.state_bytes());
  for (auto const& p : net->parameters()) held += 3.0 * static_cast<double>(p.nbytes());
  auto const size = static_cast<double>(fs::file_size(folder / "size"));
  CHECK(size > held);
  CHECK(size < 1.05 * held);
}
