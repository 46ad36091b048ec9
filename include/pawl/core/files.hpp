#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "error.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace pawl {
inline namespace v0 {

// Paths are strings in the headers: a `std::filesystem::path` converts to one, while <filesystem>
// costs every user compile time, and some builds of LibTorch bring an older copy of it along.

inline bool is_file(std::string const& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

inline bool is_folder(std::string const& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// The path of `name` in a folder.
inline std::string in_folder(std::string const& folder, std::string const& name) {
  return folder.empty() || folder.back() == '/' ? folder + name : folder + '/' + name;
}

/// The bytes of a file: [n] uint8. Throws `Error` when it cannot be read.
inline Tensor read_file(std::string const& path) {
  struct Closed {
    std::FILE* file;
    ~Closed() {
      if (file != nullptr) std::fclose(file);
    }
  };
  auto const opened = Closed{std::fopen(path.c_str(), "rb")};
  struct stat status {};
  auto const known = opened.file != nullptr && ::fstat(::fileno(opened.file), &status) == 0;
  require(known, {path, ": cannot be read (", std::strerror(errno), "); check the path"});
  require(S_ISREG(status.st_mode), {path, ": cannot be read (it is no file); check the path"});
  auto bytes = torch::empty({static_cast<std::int64_t>(status.st_size)}, torch::kUInt8);
  auto const size = bytes.nbytes();
  auto const got = size == 0 ? 0 : std::fread(bytes.data_ptr(), 1, size, opened.file);
  require(got == size, {path, ": only ", got, " of ", size, " bytes could be read; try again"});
  return bytes;
}

/// Writes bytes aside, syncs and renames, so that a file is there whole or not at all.
inline void write_file_whole(std::string const& path, std::vector<std::string_view> const& pieces) {
  auto const aside = path + ".part";
  auto file = ::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  auto const created = file >= 0;
  auto const give_up = [&](char const* what) {
    auto const reason = std::string(std::strerror(errno));
    if (file >= 0) ::close(file);
    if (created) ::unlink(aside.c_str());
    fail({"cannot ", what, " '", path, "': ", reason});
  };
  if (!created) give_up("create");
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
  file = -1;
  if (std::rename(aside.c_str(), path.c_str()) != 0) give_up("write");
}

}  // namespace v0
}  // namespace pawl
