#pragma once

/// The version of pawl, read from here by CMake as well (semantic versioning).
#define PAWL_VERSION_MAJOR 0
#define PAWL_VERSION_MINOR 1
#define PAWL_VERSION_PATCH 0
#define PAWL_VERSION "0.1.0"
