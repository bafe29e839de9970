# smt_library(NAME SRCS … DEPS … [PRIVATE_DEPS …])   one static library a folder; DEPS are the arrows of docs/architecture.md
# smt_program(NAME SRCS … DEPS …)                    a program in bin/
# smt_plugin(NAME SRCS … DEPS …)                     a module libNAME.so in bin/, beside the programs that load it
# smt_test(NAME SRCS … DEPS … [TIMEOUT seconds] [LABELS …])  one test program a library, run by ctest
function(smt_library name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${arg_SRCS})
  target_link_libraries(${name} PUBLIC smt_options ${arg_DEPS} PRIVATE ${arg_PRIVATE_DEPS})
endfunction()

function(smt_program name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE smt_options ${arg_DEPS})
  if(NOT CMAKE_CURRENT_SOURCE_DIR MATCHES "^${CMAKE_SOURCE_DIR}/tests")
    install(TARGETS ${name} RUNTIME DESTINATION bin)
  endif()
endfunction()

function(smt_plugin name)
  cmake_parse_arguments(arg "" "" "SRCS;DEPS" ${ARGN})
  add_library(${name} MODULE ${arg_SRCS})
  set_target_properties(${name} PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
  target_link_libraries(${name} PRIVATE smt_options ${arg_DEPS})
  install(TARGETS ${name} LIBRARY DESTINATION bin)
endfunction()

function(smt_test name)
  cmake_parse_arguments(arg "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  add_executable(${name} ${arg_SRCS})
  target_link_libraries(${name} PRIVATE smt_options ${arg_DEPS} GTest::gmock_main)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${arg_TIMEOUT} LABELS "${arg_LABELS}")
endfunction()
