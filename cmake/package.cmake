# cmake --install, and what find_package(pawl) reads afterwards.

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_folder "${CMAKE_INSTALL_DATADIR}/cmake/pawl")

install(TARGETS pawl EXPORT pawl-targets FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT pawl-targets NAMESPACE pawl:: DESTINATION "${package_folder}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/pawl-config.cmake.in" pawl-config.cmake
  INSTALL_DESTINATION "${package_folder}")
write_basic_package_version_file(pawl-config-version.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(
  FILES "${CMAKE_CURRENT_BINARY_DIR}/pawl-config.cmake"
        "${CMAKE_CURRENT_BINARY_DIR}/pawl-config-version.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/pawl-torch.cmake"
  DESTINATION "${package_folder}")
