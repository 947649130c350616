# One static library a folder of sources, with the folders that it may include from. A folder's headers are
# reached through an include root of its own (build/roots/FOLDER, made of links), which only the targets that
# depend on the folder have on their include path: an include against the arrows of the table does not compile
# (tests/tidy/arrows_test.py tries each).
#
#   foretoken_folder(runtime/kv ON kernels protocol WITH PkgConfig::XXHASH)
#     ON    what its headers and sources may include: folders, and foretoken's other targets. Public.
#     WITH  libraries of its sources alone. Private.
#     PROGRAM NAME  an executable instead of a library, at the top of the table.
#     IF OPTION     is built only where that option is on.
# A row whose folder holds no source is left out, and so is a name after ON that is no target: rows may be
# written before their folders. A folder below a row's, without a row of its own, belongs to it.
# After a top-level folder's last row: foretoken_folders_done(runtime).

function(foretoken_folder folder)
  cmake_parse_arguments(PARSE_ARGV 1 row "" "PROGRAM;IF" "ON;WITH")
  set_property(GLOBAL APPEND PROPERTY foretoken_folders ${folder})
  foreach(key ON WITH PROGRAM IF)
    set_property(GLOBAL PROPERTY foretoken_${key}_${folder} ${row_${key}})
  endforeach()
endfunction()

# runtime/kv -> foretoken_runtime_kv; protocol -> foretoken_protocol
function(foretoken_target out folder)
  string(REGEX REPLACE "[/-]" "_" name ${folder})
  set(${out} foretoken_${name} PARENT_SCOPE)
endfunction()

# `files` that are below `folder` and below none of the rows within it.
function(foretoken_own_files out folder)
  get_property(rows GLOBAL PROPERTY foretoken_folders)
  set(files ${ARGN})
  list(FILTER files INCLUDE REGEX "^${folder}/")
  foreach(row ${rows})
    if(row MATCHES "^${folder}/")
      list(FILTER files EXCLUDE REGEX "^${row}/")
    endif()
  endforeach()
  set(${out} ${files} PARENT_SCOPE)
endfunction()

# An include root in which nothing but these headers is found, by their path from the repository's root.
function(foretoken_include_root out folder)
  string(REPLACE "/" "." name ${folder})
  set(root ${PROJECT_BINARY_DIR}/roots/${name})
  file(REMOVE_RECURSE ${root})
  file(MAKE_DIRECTORY ${root})
  foreach(header ${ARGN})
    get_filename_component(parent ${header} DIRECTORY)
    file(MAKE_DIRECTORY ${root}/${parent})
    file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${header} ${root}/${header} SYMBOLIC)
  endforeach()
  set(${out} ${root} PARENT_SCOPE)
endfunction()

# What the rows below `top` name; foretoken_TOP is all their libraries together.
function(foretoken_folders_done top)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/${top}/*.cpp ${PROJECT_SOURCE_DIR}/${top}/*.h)
  get_property(rows GLOBAL PROPERTY foretoken_folders)
  list(FILTER rows INCLUDE REGEX "^${top}(/|$)")
  set(libraries)
  set(orphans ${files})
  foreach(row ${rows})
    foretoken_own_files(own ${row} ${files})
    list(REMOVE_ITEM orphans ${own})
    get_property(option GLOBAL PROPERTY foretoken_IF_${row})
    if(NOT own OR (option AND NOT ${option}))
      continue()
    endif()
    set(sources ${own})
    set(headers ${own})
    list(FILTER sources INCLUDE REGEX "\\.cpp$")
    list(FILTER headers INCLUDE REGEX "\\.h$")
    list(TRANSFORM sources PREPEND ${PROJECT_SOURCE_DIR}/)
    foretoken_include_root(root ${row} ${headers})
    get_property(on GLOBAL PROPERTY foretoken_ON_${row})
    get_property(with GLOBAL PROPERTY foretoken_WITH_${row})
    get_property(program GLOBAL PROPERTY foretoken_PROGRAM_${row})
    set(scope PUBLIC)
    if(program)
      set(target ${program})
      add_executable(${target} ${sources})
    else()
      foretoken_target(target ${row})
      list(APPEND libraries ${target})
      if(sources)
        add_library(${target} STATIC ${sources})
      else()
        set(scope INTERFACE)
        add_library(${target} INTERFACE)
      endif()
    endif()
    if(with)
      target_link_libraries(${target} PRIVATE ${with})
    endif()
    target_include_directories(${target} ${scope} ${root})
    foreach(folder ${on})
      foretoken_target(needed ${folder})
      if(TARGET ${needed})
        target_link_libraries(${target} ${scope} ${needed})
      endif()
    endforeach()
  endforeach()
  if(orphans)
    message(FATAL_ERROR "No row of the table in ${top}/CMakeLists.txt holds: ${orphans}. Add one: foretoken_folder(FOLDER ON ...).")
  endif()
  add_library(foretoken_${top} INTERFACE)
  target_link_libraries(foretoken_${top} INTERFACE ${libraries})
endfunction()

# A text file as the C++ string literals of `name`, found by #include in the sources of `target` alone. One
# literal a line: a compiler need not take more than 64 KiB in one.
function(foretoken_embed target file name)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} text)
  string(REPLACE "\n" "\n)text\"\nR\"text(" text "${text}")
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/embedded/${target})
  file(CONFIGURE OUTPUT ${folder}/${name}.new CONTENT "R\"text(@text@)text\"\n" @ONLY)
  configure_file(${folder}/${name}.new ${folder}/${name} COPYONLY)
  target_include_directories(${target} PRIVATE ${folder})
endfunction()
