# Makes the target `torch`, or leaves it undefined. Installed with the package, whose config file includes
# it too. Not a function, because LibTorch may enable the language CUDA.

# The folder of a LibTorch that uses CUDA, if that is the one CMake would find first; else nothing.
function(pawl_cuda_torch result)
  set(${result} "" PARENT_SCOPE)
  string(REPLACE ":" ";" from_environment "$ENV{CMAKE_PREFIX_PATH}")
  foreach(prefix IN LISTS Torch_DIR CMAKE_PREFIX_PATH ITEMS "$ENV{Torch_DIR}" ${from_environment})
    foreach(suffix IN ITEMS "" "/Torch" "/share/cmake/Torch")
      if(prefix AND EXISTS "${prefix}${suffix}/TorchConfig.cmake")
        get_filename_component(folder "${prefix}${suffix}/../../.." ABSOLUTE)
        if(EXISTS "${folder}/lib/libtorch_cuda.so")
          set(${result} "${folder}" PARENT_SCOPE)
        endif()
        return()
      endif()
    endforeach()
  endforeach()
endfunction()

# LibTorch's own package file stops the configuration when the library can use CUDA but there is no CUDA
# toolkit, and that is how the wheels of PyTorch come. Our headers need no toolkit: link the libraries.
function(pawl_torch_without_toolkit folder)
  add_library(torch SHARED IMPORTED GLOBAL)
  set_target_properties(torch PROPERTIES
    IMPORTED_LOCATION "${folder}/lib/libtorch.so"
    INTERFACE_INCLUDE_DIRECTORIES "${folder}/include;${folder}/include/torch/csrc/api/include")
  # The CUDA part registers itself when it is loaded; no symbol of ours asks for it.
  target_link_libraries(torch INTERFACE
    "-Wl,--no-as-needed,${folder}/lib/libtorch_cpu.so,${folder}/lib/libtorch_cuda.so,--as-needed"
    "${folder}/lib/libc10.so")
  target_link_options(torch INTERFACE "LINKER:--allow-shlib-undefined")
endfunction()

if(TARGET torch)
  return()
endif()

pawl_cuda_torch(pawl_torch_folder)
if(pawl_torch_folder)
  find_package(CUDAToolkit QUIET)
  if(NOT CUDAToolkit_FOUND)
    message(STATUS "LibTorch uses CUDA and there is no CUDA toolkit: linking its libraries directly")
    pawl_torch_without_toolkit("${pawl_torch_folder}")
    return()
  endif()
  if(NOT CUDA_TOOLKIT_ROOT_DIR)  # LibTorch searches in an older way, that links in PATH mislead
    list(GET CUDAToolkit_INCLUDE_DIRS 0 CUDA_TOOLKIT_ROOT_DIR)
    get_filename_component(CUDA_TOOLKIT_ROOT_DIR "${CUDA_TOOLKIT_ROOT_DIR}/.." ABSOLUTE)
  endif()
endif()

# LibTorch looks for a library that its own wheels lack and warns; nothing of ours links to it.
if(NOT DEFINED kineto_LIBRARY)
  set(kineto_LIBRARY torch)
endif()
find_package(Torch 2.11 QUIET)
