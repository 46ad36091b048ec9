# shellcheck shell=bash
# What the commands in scripts/ share; sourced, never run. Changes to the top folder of the repository.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TORCH_VERSION=2.13.0
VENV="$PWD/.venv"

say() { printf '\n== %s\n' "$*"; }

die() {
  printf '\npawl: %s\n' "$*" >&2
  exit 1
}

# Debian packages for a compiler, CMake and the libraries of programs and tests.
BUILD_PACKAGES=(g++ cmake ninja-build ccache zlib1g-dev
  libfmt-dev nlohmann-json3-dev libtomlplusplus-dev)
TEST_PACKAGES=(doctest-dev libbenchmark-dev libcli11-dev)

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages NAME...: installs the Debian packages that are missing; asks the network only then.
need_packages() {
  local missing=() package
  if ! command -v dpkg-query >/dev/null; then
    say "This is not Debian: expecting the equivalents of these packages: $*"
    return
  fi
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
      missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return
  say "Installing Debian packages: ${missing[*]}"
  [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
    die "installing them takes root rights. Run as root: apt-get install ${missing[*]}"
  as_root apt-get -qq update </dev/null ||
    die "the package lists could not be read. Is this machine online? Missing: ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null ||
    die "apt-get could not install: ${missing[*]}. Install them by hand and run this command again."
}

# The folder of TorchConfig.cmake below the prefixes given, or nothing.
find_torch_in() {
  local prefix folder
  for prefix in "$@"; do
    for folder in "$prefix" "$prefix/Torch" "$prefix/share/cmake/Torch"; do
      if [ -f "$folder/TorchConfig.cmake" ]; then
        (cd "$folder" && pwd)
        return
      fi
    done
  done
}

make_venv() {
  local python
  need_packages python3
  for python in python3 /usr/bin/python3; do
    command -v "$python" >/dev/null && "$python" -m venv "$VENV" >/dev/null 2>&1 && return
  done
  need_packages python3-venv
  rm -rf "$VENV"
  /usr/bin/python3 -m venv "$VENV" ||
    die "python3 -m venv .venv failed. Install Python 3 with venv, or set Torch_DIR to a LibTorch."
}

# Sets TORCH_CMAKE to the folder of TorchConfig.cmake: the caller's, else the wheel's in .venv.
need_libtorch() {
  local prefixes=()
  [ -z "${Torch_DIR:-}" ] || prefixes+=("$Torch_DIR")
  if [ -n "${CMAKE_PREFIX_PATH:-}" ]; then
    local given
    IFS=':;' read -ra given <<<"$CMAKE_PREFIX_PATH"
    prefixes+=("${given[@]}")
  fi
  if [ ${#prefixes[@]} -gt 0 ]; then
    TORCH_CMAKE=$(find_torch_in "${prefixes[@]}")
    if [ -n "$TORCH_CMAKE" ]; then
      say "Using the LibTorch in $TORCH_CMAKE"
      return
    fi
    [ -z "${Torch_DIR:-}" ] ||
      die "Torch_DIR is $Torch_DIR, but there is no TorchConfig.cmake. Correct it, or unset it to use .venv."
  fi
  torch_of_venv
  if [ -z "$TORCH_CMAKE" ]; then
    say "Installing LibTorch $TORCH_VERSION (the wheel of PyTorch) into .venv"
    make_venv
    "$VENV/bin/python" -m pip install --quiet "torch==$TORCH_VERSION" </dev/null ||
      die "pip could not install torch==$TORCH_VERSION. Is this machine online? Or set Torch_DIR to a LibTorch."
    torch_of_venv
    [ -n "$TORCH_CMAKE" ] || die ".venv holds no LibTorch after installation. Delete .venv and run this again."
  fi
  say "Using LibTorch $TORCH_VERSION in .venv"
}

# The wheel of exactly the version wanted, found without importing it.
torch_of_venv() {
  local site
  TORCH_CMAKE=
  for site in "$VENV"/lib/python3*/site-packages; do
    if compgen -G "$site/torch-$TORCH_VERSION[.+-]*dist-info" >/dev/null; then
      TORCH_CMAKE=$(find_torch_in "$site/torch")
    fi
  done
}

# One job per core, and 2 GB of memory for each.
jobs() {
  local cores gigabytes
  cores=$(nproc)
  gigabytes=$(awk '/MemAvailable/ {print int($2 / 2000000)}' /proc/meminfo)
  echo $((gigabytes < 1 ? 1 : gigabytes < cores ? gigabytes : cores))
}

# configure PRESET [OPTION...], build PRESET [OPTION...]
configure() {
  local log tool
  for tool in cmake ninja; do
    command -v "$tool" >/dev/null || die "$tool is missing. Install it and run this command again."
  done
  log=$(mktemp)
  say "Configuring build/$1"
  if ! cmake --preset "$1" -DTorch_DIR="$TORCH_CMAKE" "${@:2}" >"$log" 2>&1; then
    cat "$log"
    rm -f "$log"
    die "CMake could not configure the preset '$1'; its reason is above."
  fi
  grep -A5 'CMake Warning' "$log" || true
  rm -f "$log"
}

build() {
  say "Building build/$1 with $(jobs) jobs"
  NINJA_STATUS='[%f/%t %es] ' cmake --build --preset "$1" -j "$(jobs)" "${@:2}" ||
    die "the build in build/$1 failed; the first error is above."
}
