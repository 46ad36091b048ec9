#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "archive.hpp"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

namespace pawl {
inline namespace v0 {

// Checkpoints use the safetensors layout: 8 bytes little-endian length of a JSON header, the
// header, the raw tensors. Its "__metadata__" holds numbers and texts, and "crc32" over everything
// else in the file. The format is read by Python's safetensors; LibTorch's own archives load
// flipped bits without a word.

namespace detail {

struct DtypeName {
  torch::Dtype dtype;
  char const* name;
};
inline constexpr DtypeName dtype_names[] = {{torch::kFloat32, "F32"}, {torch::kFloat64, "F64"},
                                            {torch::kInt64, "I64"},   {torch::kUInt8, "U8"},
                                            {torch::kBool, "BOOL"},   {torch::kInt32, "I32"},
                                            {torch::kFloat16, "F16"}, {torch::kBFloat16, "BF16"},
                                            {torch::kInt16, "I16"},   {torch::kInt8, "I8"}};

inline std::string json_string(std::string_view text) {
  std::string quoted = "\"";
  for (auto const c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char buffer[8];
      std::snprintf(buffer, sizeof buffer, "\\u%04x", static_cast<unsigned>(c));
      quoted += buffer;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

/// Reads the JSON that safetensors headers consist of: objects of strings, and of objects with
/// strings and arrays of whole numbers. Anything else is refused, by throwing.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : text_(text) {}

  bool take(char c) {
    skip();
    if (at_ < text_.size() && text_[at_] == c) return ++at_, true;
    return false;
  }
  void expect(char c) { require(take(c), "bad header"); }
  bool finished() {
    skip();
    return at_ == text_.size();
  }

  std::string string() {
    expect('"');
    std::string value;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        value += text_[at_];
        continue;
      }
      require(++at_ < text_.size(), "bad header");
      if (text_[at_] == 'u') {
        require(at_ + 4 < text_.size(), "bad header");
        value += static_cast<char>(std::stoi(std::string(text_.substr(at_ + 1, 4)), nullptr, 16));
        at_ += 4;
      } else {
        value += text_[at_];
      }
    }
    expect('"');
    return value;
  }

  std::vector<std::int64_t> numbers() {
    std::vector<std::int64_t> values;
    expect('[');
    if (take(']')) return values;
    do {
      skip();
      std::int64_t value = 0;
      auto const begin = at_;
      for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
        require(value < std::numeric_limits<std::int64_t>::max() / 16, "bad header");
        value = value * 10 + (text_[at_] - '0');
      }
      require(at_ > begin, "bad header");
      values.push_back(value);
    } while (take(','));
    expect(']');
    return values;
  }

  /// Calls `visit(key)` for each member of an object; `visit` reads the value.
  template <class F>
  void object(F&& visit) {
    expect('{');
    if (take('}')) return;
    do {
      skip();
      auto const key = string();
      expect(':');
      skip();
      visit(key);
    } while (take(','));
    expect('}');
  }

 private:
  void skip() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  std::string_view text_;
  std::size_t at_ = 0;
};

inline unsigned long crc_of(void const* data, std::size_t size, unsigned long crc = 0) {
  auto const* bytes = static_cast<unsigned char const*>(data);
  while (size > 0) {  // zlib counts in unsigned int
    auto const chunk = static_cast<unsigned>(std::min<std::size_t>(size, 1u << 30));
    crc = ::crc32(crc, bytes, chunk);
    bytes += chunk, size -= chunk;
  }
  return crc;
}

}  // namespace detail

/// Writes bytes aside, syncs and renames, so that a file is there whole or not at all.
inline void write_file_whole(std::filesystem::path const& path,
                             std::vector<std::string_view> const& pieces) {
  auto aside = path;
  aside += ".part";
  auto const file = ::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  auto const give_up = [&](char const* what) {
    auto const reason = std::string(std::strerror(errno));
    if (file >= 0) ::close(file), ::unlink(aside.c_str());
    fail("cannot ", what, " '", path.string(), "': ", reason);
  };
  if (file < 0) give_up("create");
  for (auto piece : pieces) {
    while (!piece.empty()) {
      auto const written = ::write(file, piece.data(), piece.size());
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) give_up("write");
      piece.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  if (::fsync(file) != 0) give_up("write");
  ::close(file);
  std::error_code failed;
  std::filesystem::rename(aside, path, failed);
  if (failed) {
    std::filesystem::remove(aside);
    fail("cannot write '", path.string(), "': ", failed.message());
  }
}

/// Writes what an archive collected.
inline void write_checkpoint(std::filesystem::path const& path, Archive const& archive) {
  std::vector<Tensor> held;
  std::string header;
  std::int64_t offset = 0;
  for (auto const& [name, tensor] : archive.tensors) {
    held.push_back(tensor.to(torch::kCPU).contiguous());
    auto const size = static_cast<std::int64_t>(held.back().nbytes());
    char const* dtype = nullptr;
    for (auto const& known : detail::dtype_names) {
      if (known.dtype == held.back().scalar_type()) dtype = known.name;
    }
    require(dtype != nullptr, "cannot save '", name, "' of type ", tensor.dtype());
    std::string shape;
    for (auto const extent : tensor.sizes()) {
      shape += (shape.empty() ? "" : ",") + std::to_string(extent);
    }
    header += c10::str(",", detail::json_string(name), ":{\"dtype\":\"", dtype, "\",\"shape\":[",
                       shape, "],\"data_offsets\":[", offset, ",", offset + size, "]}");
    offset += size;
  }
  std::string metadata;
  for (auto const& [name, text] : archive.texts) {
    metadata += "," + detail::json_string(name) + ":" + detail::json_string(text);
  }
  auto crc = detail::crc_of(header.data(), header.size());
  crc = detail::crc_of(metadata.data(), metadata.size(), crc);
  for (auto const& tensor : held) crc = detail::crc_of(tensor.data_ptr(), tensor.nbytes(), crc);
  header = c10::str("{\"__metadata__\":{\"format\":\"pawl 1\",\"crc32\":\"", crc, "\"", metadata,
                    "}", header, "}");
  header.resize((header.size() + 7) / 8 * 8, ' ');
  auto const length = static_cast<std::uint64_t>(header.size());
  std::vector<std::string_view> pieces{{reinterpret_cast<char const*>(&length), sizeof length},
                                       header};
  for (auto const& tensor : held) {
    pieces.emplace_back(static_cast<char const*>(tensor.data_ptr()), tensor.nbytes());
  }
  write_file_whole(path, pieces);
}

/// Reads a checkpoint; trusts nothing in it. Throws Error when it is missing, truncated or altered.
inline Archive read_checkpoint(std::filesystem::path const& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), "cannot open the checkpoint '", path.string(), "'; check the path");
  std::string bytes((std::istreambuf_iterator<char>(file)), {});
  auto const damaged = [&] {
    fail("the checkpoint '", path.string(), "' is truncated or altered; use another copy");
  };
  std::uint64_t length = 0;
  if (bytes.size() < sizeof length) damaged();
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > bytes.size() - sizeof length) damaged();
  auto const header = std::string_view(bytes).substr(sizeof length, length);
  auto const data = std::string_view(bytes).substr(sizeof length + length);

  Archive archive(Archive::Mode::load);
  std::size_t used = 0;
  try {
    detail::HeaderReader reader(header);
    reader.object([&](std::string const& name) {
      if (name == "__metadata__") {
        reader.object([&](std::string const& key) { archive.texts[key] = reader.string(); });
        return;
      }
      std::string dtype;
      std::vector<std::int64_t> shape, offsets;
      reader.object([&](std::string const& key) {
        if (key == "dtype") dtype = reader.string();
        if (key == "shape") shape = reader.numbers();
        if (key == "data_offsets") offsets = reader.numbers();
      });
      auto const* known =
          std::find_if(std::begin(detail::dtype_names), std::end(detail::dtype_names),
                       [&](auto const& d) { return dtype == d.name; });
      require(known != std::end(detail::dtype_names) && offsets.size() == 2 &&
                  offsets[0] <= offsets[1] && offsets[1] <= static_cast<std::int64_t>(data.size()),
              "bad header");
      auto room =
          (offsets[1] - offsets[0]) / static_cast<std::int64_t>(torch::elementSize(known->dtype));
      for (auto const extent : shape) {
        require(extent <= room || room == 0 || extent == 0, "bad header");
        room = extent == 0 ? room : room / extent;
      }
      auto tensor = torch::empty(shape, known->dtype);
      require(static_cast<std::int64_t>(tensor.nbytes()) == offsets[1] - offsets[0], "bad header");
      if (tensor.nbytes() > 0) {
        std::memcpy(tensor.data_ptr(), data.data() + offsets[0], tensor.nbytes());
      }
      used = std::max(used, static_cast<std::size_t>(offsets[1]));
      archive.tensors[name] = tensor;
    });
    require(reader.finished() && used == data.size(), "bad header");
  } catch (std::exception const&) {
    damaged();
  }
  // The checksum covers the header and metadata as written, less its own entry, and all tensors.
  auto const mark = c10::str("{\"__metadata__\":{\"format\":\"pawl 1\",\"crc32\":\"",
                             archive.texts["crc32"], "\"");
  if (header.substr(0, mark.size()) != mark) damaged();
  auto const rest = header.substr(mark.size());
  std::string metadata;
  for (auto const& [name, text] : archive.texts) {
    if (name == "format" || name == "crc32") continue;
    metadata += "," + detail::json_string(name) + ":" + detail::json_string(text);
  }
  auto const closing = metadata.size();
  if (rest.substr(0, closing) != metadata || rest.substr(closing, 1) != "}") damaged();
  auto tensors = rest.substr(closing + 1);
  while (!tensors.empty() && tensors.back() == ' ') tensors.remove_suffix(1);
  if (tensors.empty() || tensors.back() != '}') damaged();
  tensors.remove_suffix(1);
  auto crc = detail::crc_of(tensors.data(), tensors.size());
  crc = detail::crc_of(metadata.data(), metadata.size(), crc);
  crc = detail::crc_of(data.data(), data.size(), crc);
  if (std::to_string(crc) != archive.texts["crc32"]) damaged();
  archive.texts.erase("format");
  archive.texts.erase("crc32");
  return archive;
}

}  // namespace v0
}  // namespace pawl
