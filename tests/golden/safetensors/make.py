"""Writes python.safetensors with the format's own library: what our reader must read and our writer must equal."""
import pathlib

import torch
from safetensors.torch import save_file

VALUES = [0.0, -0.0, 1.0, -2.5, 65504.0, 1e-7, 3.1415927, 1e30, float("inf"), float("-inf"), 1.00390625, 0.333251953125]

tensors = {
    "f32": torch.tensor(VALUES, dtype=torch.float32).reshape(3, 4),
    "f16": torch.tensor(VALUES, dtype=torch.float32).to(torch.float16).reshape(2, 6),
    "bf16": torch.tensor(VALUES, dtype=torch.float32).to(torch.bfloat16),
    "i64": torch.tensor([-(2**63), -1, 0, 2**63 - 1], dtype=torch.int64),
    "i32": torch.tensor([[-(2**31)], [2**31 - 1]], dtype=torch.int32),
    "u8": torch.tensor([0, 127, 255], dtype=torch.uint8),
    "scalar": torch.tensor(42.0, dtype=torch.float32),
    "empty": torch.zeros(0, 5, dtype=torch.float32),
    "name with \"quotes\", \\ and ü\n": torch.tensor([7], dtype=torch.int32),
}
save_file(tensors, pathlib.Path(__file__).with_name("python.safetensors"), metadata={"text": "Größe \"1\"\n"})
