#!/usr/bin/env python3
"""Golden values for dequantize_file_row: rows of GGUF blocks and what PyPI's gguf makes of them.

    pip install gguf==0.19.0 numpy && ./make_golden.py      (writes <type>.bin beside this script)

Each file: 4 rows of 512 values. Rows 0 and 1 are random blocks (every code and scale bit pattern that is
finite), rows 2 and 3 real-looking data quantised by gguf where it can quantise the type (else random
blocks again). Layout, little-endian: the rows' file bytes, then 4 x 512 float32.
"""
import pathlib

import gguf
import numpy as np

ROWS, VALUES = 4, 512
TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Where each type's fp16 fields lie in a block.
HALVES = {"F16": [0], "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "IQ4_NL": [0],
          "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_rows(rng, name, rows):
    qtype = gguf.GGMLQuantizationType[name]
    values, size = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (rows * VALUES // values, size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        # Any finite fp16, subnormal ones included.
        bits = rng.integers(0, 0x7C00, len(blocks), dtype=np.uint16)
        bits |= rng.integers(0, 2, len(blocks), dtype=np.uint16) << 15
        blocks[:, at : at + 2] = bits.view(np.uint8).reshape(-1, 2)
    if name == "BF16":
        blocks[:, 1] = 0x3C | (blocks[:, 1] & 0x83)
    return blocks.reshape(rows, -1)


def main():
    rng = np.random.default_rng(20261122)
    for name in TYPES:
        qtype = gguf.GGMLQuantizationType[name]
        rows = random_rows(rng, name, ROWS // 2)
        x = rng.normal(0, 0.05, (ROWS // 2, VALUES)).astype(np.float32)
        try:
            more = gguf.quants.quantize(x, qtype).reshape(ROWS // 2, -1).view(np.uint8)
        except NotImplementedError:
            more = random_rows(rng, name, ROWS // 2)
        data = np.ascontiguousarray(np.concatenate([rows, more]))
        values = gguf.quants.dequantize(data, qtype).astype("<f4").reshape(ROWS, VALUES)
        assert np.isfinite(values).all(), name
        path = pathlib.Path(__file__).parent / f"{name}.bin"
        path.write_bytes(data.tobytes() + values.tobytes())
        print(name, data.shape, values.shape)


main()
