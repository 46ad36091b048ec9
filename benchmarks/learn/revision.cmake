# Writes the git revision to `header` when it has changed; "unknown" outside a repository.

execute_process(
  COMMAND git -C "${source}" describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE revision OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
if(failed OR NOT revision)
  set(revision "unknown")
endif()
set(line "#define PAWL_GIT_REVISION \"${revision}\"\n")
set(present "")
if(EXISTS "${header}")
  file(READ "${header}" present)
endif()
if(NOT present STREQUAL line)
  file(WRITE "${header}" "${line}")
endif()
