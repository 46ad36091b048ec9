# What the headers need: LibTorch, zlib and the threads of the platform.

# Users of add_subdirectory(pawl) link pawl::pawl from their own folder: let them see the targets.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)

include(pawl-torch)
if(NOT TARGET torch)
  message(FATAL_ERROR
    "pawl: LibTorch 2.11 or newer was not found. Run scripts/quickstart, which puts it into .venv, "
    "or point CMake to yours with -DTorch_DIR=<libtorch>/share/cmake/Torch or "
    "-DCMAKE_PREFIX_PATH=<libtorch>.")
endif()

find_package(ZLIB QUIET)
if(NOT ZLIB_FOUND)
  message(FATAL_ERROR
    "pawl: zlib was not found. Install it (Debian: apt-get install zlib1g-dev) or run scripts/quickstart.")
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
