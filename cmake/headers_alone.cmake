# Compiles every header of pawl by itself. LibTorch's headers are read once instead of a hundred times;
# that what needs them includes torch.hpp all the same is for scripts/check_includes to see.

include(warnings)

foreach(header IN LISTS pawl_headers)
  file(RELATIVE_PATH name "${PROJECT_SOURCE_DIR}/include" "${header}")
  set(source "${PROJECT_BINARY_DIR}/headers_alone/${name}.cpp")
  file(CONFIGURE OUTPUT "${source}" CONTENT "#include <${name}>\n" @ONLY)
  list(APPEND sources "${source}")
endforeach()

add_library(pawl_headers OBJECT EXCLUDE_FROM_ALL ${sources})
target_link_libraries(pawl_headers PRIVATE pawl::pawl pawl_warnings)
target_precompile_headers(pawl_headers PRIVATE "${PROJECT_SOURCE_DIR}/include/pawl/torch.hpp")
