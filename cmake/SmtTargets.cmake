# smt_library(NAME SRCS … DEPS … [PRIVATE_DEPS …])   one static library a folder; DEPS are the arrows of docs/architecture.md
# smt_program(NAME SRCS … DEPS …)                    a program in bin/
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
