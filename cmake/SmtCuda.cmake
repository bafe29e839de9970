# Decides, from SMT_CUDA = AUTO | ON | OFF, whether the CUDA modules are built. Needs FindLibTorch before it.
#
#   SMT_CUDA_ENABLED       build them: nvcc and a LibTorch with CUDA are there
#   SMT_NVCC               path of nvcc
#   SMT_CUDA_VERSION       its release, as 13.0
#   SMT_CUDA_INCLUDE_DIR   the toolkit's headers (cuda_runtime_api.h)
#   SMT_CUDA_ARCHITECTURES what kernels are compiled for: sm_80, sm_90, and PTX for what comes later
#
# The server itself never links CUDA: it loads a module (smt_plugin) when a GPU is asked for.
file(GLOB _smt_venv_nvcc "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu*/bin")
find_program(SMT_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda/bin ${_smt_venv_nvcc})
set(SMT_CUDA_ARCHITECTURES "80-real;90-real;90-virtual" CACHE STRING "CUDA architectures of our kernels")
mark_as_advanced(SMT_NVCC SMT_CUDA_ARCHITECTURES)
set(SMT_CUDA_ENABLED FALSE)

string(TOUPPER "${SMT_CUDA}" _smt_cuda)
if(_smt_cuda MATCHES "^(ON|TRUE|YES|1)$")
  set(_smt_cuda ON)
elseif(_smt_cuda MATCHES "^(OFF|FALSE|NO|0)$")
  set(_smt_cuda OFF)
elseif(NOT _smt_cuda STREQUAL "AUTO")
  message(FATAL_ERROR "SMT_CUDA is AUTO, ON or OFF, not \"${SMT_CUDA}\"")
endif()

if(NOT _smt_cuda STREQUAL "OFF")
  set(_smt_why "")
  if(NOT SMT_NVCC)
    set(_smt_why "no nvcc in PATH, /usr/local/cuda/bin or the project's .venv")
  elseif(NOT LibTorch_CUDA_FOUND)
    set(_smt_why "the LibTorch at ${LibTorch_ROOT} has no libtorch_cuda.so (SMT_TORCH=cuda scripts/setup installs one that has)")
  else()
    get_filename_component(_smt_nvcc_bin "${SMT_NVCC}" REALPATH)
    get_filename_component(_smt_nvcc_bin "${_smt_nvcc_bin}" DIRECTORY)
    find_path(SMT_CUDA_INCLUDE_DIR cuda_runtime_api.h
      HINTS ${_smt_nvcc_bin}/../include ${_smt_nvcc_bin}/../targets/x86_64-linux/include NO_DEFAULT_PATH)
    mark_as_advanced(SMT_CUDA_INCLUDE_DIR)
    execute_process(COMMAND ${SMT_NVCC} --version OUTPUT_VARIABLE _smt_nvcc_says ERROR_QUIET)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" _smt_match "${_smt_nvcc_says}")
    set(SMT_CUDA_VERSION "${CMAKE_MATCH_1}")
    if(NOT SMT_CUDA_INCLUDE_DIR)
      set(_smt_why "nvcc is ${SMT_NVCC}, but no cuda_runtime_api.h lies near it")
    else()
      set(SMT_CUDA_ENABLED TRUE)
    endif()
  endif()
  if(SMT_CUDA_ENABLED)
    # Here, because a language is enabled for the folder that asks and those below.
    set(CMAKE_CUDA_COMPILER "${SMT_NVCC}")
    set(CMAKE_CUDA_ARCHITECTURES "${SMT_CUDA_ARCHITECTURES}")
    enable_language(CUDA)
    message(STATUS "CUDA modules: yes (nvcc ${SMT_CUDA_VERSION}, ${SMT_NVCC})")
  elseif(_smt_cuda STREQUAL "ON")
    message(FATAL_ERROR "SMT_CUDA=ON, but ${_smt_why}")
  else()
    message(STATUS "CUDA modules: no (${_smt_why})")
  endif()
else()
  message(STATUS "CUDA modules: no (SMT_CUDA=OFF)")
endif()
