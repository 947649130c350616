"""Expected logits of the tiny models, from llama.cpp: float32 KV cache, no flash attention, one thread.

    build/ci/tests/write_golden_models MODELS        (the models of tests/support/golden_models.h)
    python tests/tools/model_golden.py MODELS tests/golden/arch

Needs, from PyPI: numpy, cffi, xllamacpp==2026.10.11549 (llama.cpp b11549 as one shared library) and the sources
of llama-cpp-py-sync==0.11739 for the C declarations (its own library needs a newer glibc and is not loaded):
pip download --no-deps both, unpack them, and name the folders in XLLAMACPP and LLAMA_CPP_DECLARATIONS.

A golden file: int32 positions, vocabulary; int32 [positions]; float32 [positions, vocabulary]. The tokens are
those of golden_models.cpp."""
import os
import pathlib
import subprocess
import sys

import cffi
import numpy

TOKENS = [(i * 31 + i * i) % 256 for i in range(96)]
POSITIONS = [0, 1, 7, 31, 47, 63, 80, 95]
F32 = 0  # ggml_type


def library():
    declarations = (pathlib.Path(os.environ["LLAMA_CPP_DECLARATIONS"]) / "llama_cpp_py_sync/_cffi_bindings.py").read_text()
    ffi = cffi.FFI()
    ffi.cdef(declarations.split('_LLAMA_H_CDEF = """', 1)[1].split('"""', 1)[0] + "\nvoid ggml_backend_load_all(void);")
    lib = ffi.dlopen(str(pathlib.Path(os.environ["XLLAMACPP"]) / "xllamacpp/xllamacpp.abi3.so"))
    lib.ggml_backend_load_all()
    lib.llama_backend_init()
    return ffi, lib


def logits(path):
    ffi, lib = library()
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model != ffi.NULL, path
    options = lib.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch, options.n_seq_max = 256, 1, 1, 1
    options.type_k = options.type_v = F32
    options.flash_attn_type = 0
    context = lib.llama_init_from_model(model, options)
    assert context != ffi.NULL, path
    batch = lib.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for i, token in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert lib.llama_decode(context, batch) == 0, path
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    row = lambda i: numpy.frombuffer(ffi.buffer(lib.llama_get_logits_ith(context, i), 4 * n_vocab), numpy.float32).copy()
    return numpy.stack([row(i) for i in POSITIONS])


def main():
    source, target = map(pathlib.Path, sys.argv[1:3])
    if len(sys.argv) == 4:  # one case, in a process of its own: llama.cpp ends the process on some errors
        rows = logits(source / (sys.argv[3] + ".gguf"))
        with open(target / (sys.argv[3] + ".bin"), "wb") as out:
            numpy.array([len(POSITIONS), rows.shape[1], *POSITIONS], "<i4").tofile(out)
            rows.astype("<f4").tofile(out)
        return
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.gguf")):
        subprocess.run([sys.executable, __file__, source, target, path.stem], check=True)


main()
