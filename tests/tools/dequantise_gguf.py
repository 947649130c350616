"""A GGUF model with the same weights in fp16: linear layers then keep their inputs in floats, and what a KV mode costs is
seen without what any small change costs a model whose activations are rounded to 8 bits.
dequantise_gguf.py IN.gguf OUT.gguf   (needs PyPI's gguf: tests/requirements.txt)"""
import sys

import gguf
import numpy

source, target = sys.argv[1:]
reader = gguf.GGUFReader(source)
writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
for name, field in reader.fields.items():
    if name.startswith("GGUF.") or name == "general.architecture":
        continue
    value = int(gguf.LlamaFileType.MOSTLY_F16) if name == "general.file_type" else field.contents()
    sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
    writer.add_key_value(name, value, field.types[0], sub_type=sub_type)
for tensor in reader.tensors:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in reversed(tensor.shape)])
    writer.add_tensor(tensor.name, values.astype(numpy.float16 if values.ndim > 1 else numpy.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
