# Finds LibTorch (>= 2.6) without its own TorchConfig.cmake, which needs a CUDA toolkit, links every CUDA library
# into every target and puts an include folder with old copies of google/protobuf and fmt on the search path.
#
# Looks in CMAKE_PREFIX_PATH (an unpacked LibTorch or a wheel's site-packages/torch), then in the project's .venv.
#
#   LibTorch::cpu    torch_cpu, c10
#   LibTorch::cuda   torch_cuda, c10_cuda (only where the build has them; LibTorch_CUDA_FOUND)
#
# Both see only ATen, c10, torch and caffe2 headers, through a folder of links in the build tree.
file(GLOB _smt_venv_torch "${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/torch")
find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h
  HINTS ${CMAKE_PREFIX_PATH} ENV LIBTORCH PATH_SUFFIXES include torch/include NO_DEFAULT_PATH)
if(NOT LibTorch_INCLUDE_DIR)
  find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h HINTS ${_smt_venv_torch} PATH_SUFFIXES include NO_DEFAULT_PATH)
endif()
get_filename_component(LibTorch_ROOT "${LibTorch_INCLUDE_DIR}" DIRECTORY)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS ${LibTorch_ROOT}/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS ${LibTorch_ROOT}/lib NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS ${LibTorch_ROOT}/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS ${LibTorch_ROOT}/lib NO_DEFAULT_PATH)

# The version header moved with 2.9; both spell the parts as three macros.
foreach(_smt_header torch/headeronly/version.h torch/csrc/api/include/torch/version.h)
  if(LibTorch_INCLUDE_DIR AND NOT LibTorch_VERSION AND EXISTS "${LibTorch_INCLUDE_DIR}/${_smt_header}")
    set(_smt_parts "")
    foreach(_smt_part MAJOR MINOR PATCH)
      file(STRINGS "${LibTorch_INCLUDE_DIR}/${_smt_header}" _smt_line REGEX "^#define TORCH_VERSION_${_smt_part} ")
      string(REGEX MATCH "[0-9]+" _smt_number "${_smt_line}")
      if(NOT _smt_number STREQUAL "")
        list(APPEND _smt_parts ${_smt_number})
      endif()
    endforeach()
    list(JOIN _smt_parts "." LibTorch_VERSION)
  endif()
endforeach()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "run scripts/setup, or put a LibTorch on CMAKE_PREFIX_PATH")

if(LibTorch_FOUND AND NOT TARGET LibTorch::cpu)
  set(_smt_view "${CMAKE_BINARY_DIR}/libtorch-include")
  file(MAKE_DIRECTORY "${_smt_view}")
  foreach(_smt_dir ATen c10 torch caffe2)
    if(EXISTS "${LibTorch_INCLUDE_DIR}/${_smt_dir}")
      file(CREATE_LINK "${LibTorch_INCLUDE_DIR}/${_smt_dir}" "${_smt_view}/${_smt_dir}" SYMBOLIC)
    endif()
  endforeach()
  add_library(LibTorch::cpu INTERFACE IMPORTED)
  set_target_properties(LibTorch::cpu PROPERTIES
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${_smt_view};${_smt_view}/torch/csrc/api/include"
    INTERFACE_INCLUDE_DIRECTORIES "${_smt_view};${_smt_view}/torch/csrc/api/include"
    INTERFACE_COMPILE_DEFINITIONS "_GLIBCXX_USE_CXX11_ABI=1"
    INTERFACE_LINK_LIBRARIES "${LibTorch_CPU_LIBRARY};${LibTorch_C10_LIBRARY}")
  set(LibTorch_CUDA_FOUND FALSE)
  if(LibTorch_CUDA_LIBRARY AND LibTorch_C10_CUDA_LIBRARY)
    set(LibTorch_CUDA_FOUND TRUE)
    add_library(LibTorch::cuda INTERFACE IMPORTED)
    # --no-as-needed: the library registers its kernels when loaded; nothing of ours calls it by name.
    set_target_properties(LibTorch::cuda PROPERTIES INTERFACE_LINK_LIBRARIES
      "LibTorch::cpu;-Wl,--push-state,--no-as-needed;${LibTorch_CUDA_LIBRARY};${LibTorch_C10_CUDA_LIBRARY};-Wl,--pop-state")
  endif()
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY LibTorch_C10_CUDA_LIBRARY)
