# LibTorch 2.11.0 as plain imported targets: torch::headers, torch::cpu (libtorch_cpu) and torch::c10. It comes from
# PyPI's torch wheel, which cmake/fetch_torch installs into FORETOKEN_TORCH_DIR together with the two CUDA
# runtime libraries that libtorch_cpu.so is linked against. find_package(Torch) would want the whole CUDA
# toolkit; a trainer on the CPU needs none of it.
set(default_torch_dir $ENV{HOME}/.cache/foretoken/torch-2.11.0)
if(DEFINED ENV{XDG_CACHE_HOME})
  set(default_torch_dir $ENV{XDG_CACHE_HOME}/foretoken/torch-2.11.0)
endif()
if(DEFINED ENV{FORETOKEN_TORCH_DIR})
  set(default_torch_dir $ENV{FORETOKEN_TORCH_DIR})
endif()
set(FORETOKEN_TORCH_DIR ${default_torch_dir} CACHE PATH "Folder that cmake/fetch_torch installed LibTorch into")

set(torch_lib ${FORETOKEN_TORCH_DIR}/torch/lib)
set(torch_cuda_lib ${FORETOKEN_TORCH_DIR}/nvidia/cu13/lib)
foreach(needed ${torch_lib}/libtorch_cpu.so ${torch_lib}/libc10.so ${torch_cuda_lib}/libcudart.so.13
        ${torch_cuda_lib}/libcupti.so.13)
  if(NOT EXISTS ${needed})
    message(FATAL_ERROR "LibTorch is not in ${FORETOKEN_TORCH_DIR} (${needed} is missing).\n"
      "Run cmake/fetch_torch, or name its folder with -DFORETOKEN_TORCH_DIR=..., "
      "or build without the trainer: -DFORETOKEN_TRAINER=OFF.")
  endif()
endforeach()

# The wheel is built with the C++11 ABI of libstdc++ (manylinux_2_28), g++'s own default.
add_library(torch::c10 SHARED IMPORTED GLOBAL)
set_target_properties(torch::c10 PROPERTIES IMPORTED_LOCATION ${torch_lib}/libc10.so)
add_library(torch::cpu SHARED IMPORTED GLOBAL)
set_target_properties(torch::cpu PROPERTIES IMPORTED_LOCATION ${torch_lib}/libtorch_cpu.so)
# Headers apart from the library: the wheel's include folder carries a fmt of its own, which must not shadow
# the one that everything else uses. SYSTEM: they are not held to our warnings.
add_library(torch::headers INTERFACE IMPORTED GLOBAL)
target_include_directories(torch::headers SYSTEM INTERFACE
  ${FORETOKEN_TORCH_DIR}/torch/include ${FORETOKEN_TORCH_DIR}/torch/include/torch/csrc/api/include)
target_compile_definitions(torch::headers INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
target_link_libraries(torch::cpu INTERFACE torch::c10)
# DT_RPATH, not DT_RUNPATH: it is searched before LD_LIBRARY_PATH, and for the libraries that libtorch_cpu.so
# itself needs (libcudart.so.13, libcupti.so.13), so that another CUDA cannot slip in. CMake fills in the
# folders of the imported libraries; the CUDA ones are also in libtorch_cpu.so's own rpath.
set(FORETOKEN_TORCH_RPATH ${torch_lib} ${torch_cuda_lib})
target_link_options(torch::cpu INTERFACE
  LINKER:--disable-new-dtags LINKER:-rpath-link,${torch_lib} LINKER:-rpath-link,${torch_cuda_lib})
