# What makes a cold build faster; nothing depends on it. Included after all targets are there.
# CPU seconds with g++ 12: torch/nn/module.h takes 8 of a module's 9.
function(smt_precompile header)
  foreach(target ${ARGN})
    if(TARGET ${target})
      target_precompile_headers(${target} PRIVATE ${header})
      # For ccache.
      target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
    endif()
  endforeach()
endfunction()

smt_precompile(<torch/nn/module.h> smt_model smt_model_test)
