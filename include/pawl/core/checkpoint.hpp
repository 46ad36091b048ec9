#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <locale>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "archive.hpp"
#include "files.hpp"
#include "safetensors.hpp"

#include <zlib.h>

namespace pawl {
inline namespace v0 {

// Checkpoints are safetensors files, so that Python reads them. Their metadata holds numbers and
// texts, the number of threads, and a checksum over every other byte of the file: LibTorch's own
// archives load flipped bits without a word.

namespace detail {

inline constexpr std::string_view checkpoint_start =
    "{\"__metadata__\":{\"format\":\"pawl 1\",\"crc32\":\"";  // the checksum follows
inline constexpr std::string_view no_checksum = "00000000";

inline unsigned long crc_of(void const* data, std::size_t size, unsigned long crc = 0) {
  auto const* bytes = static_cast<unsigned char const*>(data);
  while (size > 0) {  // zlib counts in unsigned int
    auto const chunk = static_cast<unsigned>(std::min<std::size_t>(size, 1u << 30));
    crc = ::crc32(crc, bytes, chunk);
    bytes += chunk, size -= chunk;
  }
  return crc;
}

inline std::string checksum(std::vector<std::string_view> const& pieces) {
  unsigned long crc = 0;
  for (auto const piece : pieces) crc = crc_of(piece.data(), piece.size(), crc);
  char digits[no_checksum.size() + 1];
  std::snprintf(digits, sizeof digits, "%08lx", crc);
  return digits;
}

/// The header of an archive whose tensors are `held` (on the host, in the same order).
inline std::string header_of(Archive const& archive, std::vector<Tensor> const& held) {
  std::ostringstream header;
  header.imbue(std::locale::classic());
  header << checkpoint_start << no_checksum << "\",\"threads\":\"" << torch::get_num_threads()
         << '"';
  for (std::size_t i = 0; i < archive.texts.names.size(); ++i) {
    header << ',' << json_string(archive.texts.names[i]) << ':'
           << json_string(archive.texts.values[i]);
  }
  header << '}';
  std::size_t offset = 0;
  auto tensor = held.begin();
  for (auto const& entry : archive.tensors) {
    auto const type = tensor->scalar_type();
    auto const* known = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                                     [&](auto const& d) { return d.dtype == type; });
    require(known != std::end(dtype_names), {"cannot save '", entry.key(), "' of type ", type});
    std::string shape;
    for (auto const extent : tensor->sizes()) {
      if (!shape.empty()) shape += ',';
      shape += std::to_string(extent);
    }
    auto const end = offset + tensor->nbytes();
    header << ',' << json_string(entry.key()) << ":{\"dtype\":\"" << known->name << "\",\"shape\":["
           << shape << "],\"data_offsets\":[" << offset << ',' << end << "]}";
    offset = end, ++tensor;
  }
  header << '}';
  auto text = std::move(header).str();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  return text;
}

/// Reads one entry of a header: a tensor whose bytes lie in `data`. Returns where they end.
inline std::size_t read_tensor(HeaderReader& reader, std::string_view data, Tensor& tensor) {
  std::string dtype;
  std::vector<std::int64_t> shape, offsets;
  reader.object([&](std::string const& key) {
    if (key == "dtype") dtype = reader.string();
    if (key == "shape") shape = reader.numbers();
    if (key == "data_offsets") offsets = reader.numbers();
  });
  auto const* known = std::find_if(std::begin(dtype_names), std::end(dtype_names),
                                   [&](auto const& d) { return dtype == d.name; });
  require(known != std::end(dtype_names) && offsets.size() == 2 && offsets[0] <= offsets[1] &&
              offsets[1] <= static_cast<std::int64_t>(data.size()),
          "bad header");
  auto const size = offsets[1] - offsets[0];
  auto room = size / static_cast<std::int64_t>(torch::elementSize(known->dtype));
  auto const empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  for (auto const extent : shape) {  // nothing is allocated for a shape that cannot be
    require(empty || extent <= room, "bad header");
    if (!empty) room /= extent;
  }
  tensor = torch::empty(shape, known->dtype);
  require(static_cast<std::int64_t>(tensor.nbytes()) == size, "bad header");
  if (size > 0) std::memcpy(tensor.data_ptr(), data.data() + offsets[0], tensor.nbytes());
  return static_cast<std::size_t>(offsets[1]);
}

}  // namespace detail

/// Writes what an archive collected.
inline void write_checkpoint(std::string const& path, Archive const& archive) {
  std::vector<Tensor> held;
  for (auto const& entry : archive.tensors) {
    held.push_back(entry.value().to(torch::kCPU).contiguous());
  }
  auto header = detail::header_of(archive, held);
  auto const length = static_cast<std::uint64_t>(header.size());
  std::vector<std::string_view> pieces{{reinterpret_cast<char const*>(&length), sizeof length},
                                       header};
  for (auto const& tensor : held) {
    pieces.emplace_back(static_cast<char const*>(tensor.data_ptr()), tensor.nbytes());
  }
  auto const checksum = detail::checksum(pieces);
  std::copy(checksum.begin(), checksum.end(),
            header.begin() + static_cast<std::ptrdiff_t>(detail::checkpoint_start.size()));
  write_file_whole(path, pieces);
}

/// Reads a checkpoint; trusts nothing in it. Throws Error when it is missing, truncated or altered.
inline Archive read_checkpoint(std::string const& path) {
  auto const content = read_file(path);
  auto* const bytes = static_cast<char*>(content.data_ptr());
  std::string_view const file(bytes, content.nbytes());
  Archive archive(Archive::Mode::load);
  try {
    std::uint64_t length = 0;
    auto const digits = sizeof length + detail::checkpoint_start.size();
    require(file.size() > digits + detail::no_checksum.size(), "too short");
    auto const checksum = std::string(file.substr(digits, detail::no_checksum.size()));
    detail::no_checksum.copy(bytes + digits, checksum.size());
    require(detail::checksum({file}) == checksum, "altered");

    std::memcpy(&length, bytes, sizeof length);
    auto const rest = file.substr(sizeof length);
    require(length <= rest.size(), "bad header");
    auto const data = rest.substr(length);
    detail::HeaderReader reader(rest.substr(0, length));
    std::size_t used = 0;
    reader.object([&](std::string const& name) {
      if (name == "__metadata__") {
        reader.object([&](std::string const& key) {
          auto text = reader.string();
          auto const of_file = key == "format" || key == "crc32" || key == "threads";
          if (!of_file) archive.texts.add(key, std::move(text));
        });
      } else {
        used = std::max(used, detail::read_tensor(reader, data, archive.tensors.insert(name, {})));
      }
    });
    require(reader.finished() && used == data.size(), "bad header");
  } catch (std::exception const&) {
    fail({"the checkpoint '", path, "' is truncated or altered; use another copy"});
  }
  return archive;
}

}  // namespace v0
}  // namespace pawl
