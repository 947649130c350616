# cmake --install, and the Debian package (cpack -G DEB). Installed are the two programs, a manual page for each,
# an example of a configuration, the systemd unit, and LibTorch's libraries: the package carries them, because a
# service should not need PyPI when it first starts. They lie below LIBDIR/foretoken as in the wheels, so that
# libtorch_cpu.so finds CUDA's runtime by its own rpath; foretoken-trainer finds them by $ORIGIN.
find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(docs ${CMAKE_INSTALL_DOCDIR})
if(FORETOKEN_TRAINER)
  set(installed_torch ${CMAKE_INSTALL_LIBDIR}/foretoken)
  install(PROGRAMS ${torch_lib}/libtorch_cpu.so ${torch_lib}/libc10.so ${torch_lib}/libgomp.so.1 DESTINATION ${installed_torch}/torch/lib)
  install(PROGRAMS ${torch_cuda_lib}/libcudart.so.13 ${torch_cuda_lib}/libcupti.so.13 DESTINATION ${installed_torch}/nvidia/cu13/lib)
  file(GLOB licences ${FORETOKEN_TORCH_DIR}/torch-*.dist-info/licenses/LICENSE ${FORETOKEN_TORCH_DIR}/nvidia_cuda_*.dist-info/licenses/*)
  foreach(licence ${licences})
    string(REGEX REPLACE "^.*/([a-z_]+)-[^/]*dist-info/.*$" "\\1" owner ${licence})
    install(FILES ${licence} DESTINATION ${docs} RENAME LICENSE.${owner})
  endforeach()
endif()
install(FILES LICENSE README.md DESTINATION ${docs})

# What depends on the prefix that is only known now, and what the programs say of themselves.
set(programs $<TARGET_FILE:foretoken> $<$<BOOL:${FORETOKEN_TRAINER}>:$<TARGET_FILE:foretoken-trainer>>)
install(CODE "
  set(made \"${PROJECT_BINARY_DIR}/install\")
  set(man \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_MANDIR}/man1\")
  set(examples \"\${CMAKE_INSTALL_PREFIX}/${docs}/examples\")
  set(bin \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_BINDIR}\")
  set(etc \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_SYSCONFDIR}\")
  if(CMAKE_INSTALL_PREFIX STREQUAL \"/usr\")
    set(etc /etc)
  endif()
  file(REMOVE_RECURSE \"\${made}\")
  execute_process(COMMAND \"${Python3_EXECUTABLE}\" \"${PROJECT_SOURCE_DIR}/cmake/describe_programs\" \"\${made}\" ${programs}
                  COMMAND_ERROR_IS_FATAL ANY)
  file(READ \"${PROJECT_SOURCE_DIR}/examples/deploy/foretoken.service\" unit)
  string(REPLACE /usr/local/bin \"\${bin}\" unit \"\${unit}\")
  string(REPLACE /etc/foretoken \"\${etc}/foretoken\" unit \"\${unit}\")
  file(WRITE \"\${made}/foretoken.service\" \"\${unit}\")
  file(GLOB pages \"\${made}/*.1\")
  file(INSTALL \${pages} DESTINATION \"\${man}\")
  file(INSTALL \"\${made}/foretoken.toml\" DESTINATION \"\${examples}\")
  file(INSTALL \"\${made}/foretoken.service\" DESTINATION \"\${CMAKE_INSTALL_PREFIX}/lib/systemd/system\")
  file(INSTALL \"${PROJECT_SOURCE_DIR}/examples/deploy/foretoken.env\" DESTINATION \"\${etc}/foretoken\")
")

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME foretoken)
set(CPACK_PACKAGE_VENDOR foretoken)
set(CPACK_PACKAGE_CONTACT "The foretoken maintainers <maintainers@foretoken.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "LLM server with speculative decoding that learns from its traffic")
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES OFF)  # built without debug information, and LibTorch is as published
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_COMPRESSION_TYPE zstd)
set(CPACK_DEBIAN_PACKAGE_DEPENDS adduser)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)  # needs dpkg-dev and file
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${torch_lib} ${torch_cuda_lib})
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/cmake/package/conffiles ${PROJECT_SOURCE_DIR}/cmake/package/postinst
    ${PROJECT_SOURCE_DIR}/cmake/package/prerm ${PROJECT_SOURCE_DIR}/cmake/package/postrm)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
