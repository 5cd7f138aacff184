"""Counts products with weights, which are the same on every machine, where a time is not."""

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

WITH_WEIGHTS = {getattr(torch.ops.aten, name) for name in ("addmm", "mm", "bmm", "baddbmm", "convolution")}


class Products(TorchDispatchMode):
    """Counts multiplications by weights; those that follow shapes alone, on no data, cost nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        if operation.overloadpacket in WITH_WEIGHTS:
            self.count += not any(isinstance(t, FakeTensor) or t.is_meta for t in tensors)
        return operation(*args, **(kwargs or {}))
