# Warnings for our own programs and tests only; who links pawl::pawl keeps their own flags.

add_library(pawl_warnings INTERFACE)
target_compile_options(pawl_warnings INTERFACE
  -Wall -Wextra -Wpedantic $<$<BOOL:${PAWL_WERROR}>:-Werror>)
