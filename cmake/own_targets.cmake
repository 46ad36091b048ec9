# What our own programs and tests share: warnings, third-party libraries, compiler cache and one
# precompiled header. Nothing here reaches a user of pawl::pawl.

include(warnings)

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(PAWL_CCACHE ccache)
  mark_as_advanced(PAWL_CCACHE)
  if(PAWL_CCACHE)
    # Precompiled headers carry time stamps and macros, which ccache must be told to accept.
    set(CMAKE_CXX_COMPILER_LAUNCHER
      "${CMAKE_COMMAND}" -E env "CCACHE_SLOPPINESS=pch_defines,time_macros" "${PAWL_CCACHE}")
  endif()
endif()

# {fmt} is used header-only: LibTorch's include folder carries a version of its own, which shadows
# the system's, so a compiled libfmt would not match the header.
find_package(fmt QUIET)
add_library(pawl_own INTERFACE)
# Some builds of LibTorch export parts of the C++ library that were linked into them, of another version
# than the headers of our compiler: the system's must be asked first.
if(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
  target_link_options(pawl_own INTERFACE "LINKER:--push-state,--no-as-needed" -lstdc++ "LINKER:--pop-state")
endif()
# LibTorch exports 75,000 symbols, which gold reads in a third of the time.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  include(CheckLinkerFlag)
  check_linker_flag(CXX -fuse-ld=gold PAWL_HAS_GOLD)
  target_link_options(pawl_own INTERFACE $<$<AND:$<BOOL:${PAWL_HAS_GOLD}>,$<CONFIG:Debug>>:-fuse-ld=gold>)
endif()
target_link_libraries(pawl_own INTERFACE
  pawl::pawl pawl_warnings $<TARGET_NAME_IF_EXISTS:fmt::fmt-header-only>)
target_compile_definitions(pawl_own INTERFACE FMT_HEADER_ONLY=1)

# One target owns the precompiled header: the LibTorch headers that torch.hpp names and the standard
# ones of pch.hpp, never a header of ours. Any differing flag would switch it off, so everything that
# uses it links pawl_own and nothing that adds flags.
if(PAWL_PCH)
  set(torch_header "${PROJECT_SOURCE_DIR}/include/pawl/torch.hpp")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${torch_header}")
  file(READ "${torch_header}" torch_includes)
  string(REGEX REPLACE "\n#if .*" "" torch_includes "${torch_includes}")  # the rest depends on the LibTorch
  string(REGEX MATCHALL "<[^>\n]+>" torch_includes "${torch_includes}")

  add_library(pawl_pch OBJECT "${PROJECT_SOURCE_DIR}/cmake/pch.cpp")
  target_link_libraries(pawl_pch PRIVATE pawl_own)
  target_precompile_headers(pawl_pch PRIVATE
    "${PROJECT_SOURCE_DIR}/cmake/pch.hpp" ${torch_includes})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(pawl_own INTERFACE -fpch-preprocess)  # lets ccache look inside
  else()
    target_compile_options(pawl_own INTERFACE "SHELL:-Xclang -fno-pch-timestamp")
  endif()
endif()

# pawl_own_target(TARGET): what every program and test of ours has in common.
function(pawl_own_target target)
  target_link_libraries(${target} PRIVATE pawl_own)
  if(PAWL_PCH)
    target_precompile_headers(${target} REUSE_FROM pawl_pch)
  endif()
endfunction()
