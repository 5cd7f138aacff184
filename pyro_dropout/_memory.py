"""How many bytes of tensors a computation holds at once."""

from __future__ import annotations

import sys
import weakref
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside the context, and the most that were alive at once.

    On any device. What kernels take and give back inside one operation is not seen. What ``torch.compile`` has
    compiled, or would, runs as it is written.

    Example::

        >>> import torch
        >>> with PeakMemory() as memory:
        ...     total = torch.ones(1000).exp().sum()
        >>> memory.peak
        8000
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether PyTorch is to keep its compiler away, which would load it, in half a second, to be kept away."""
        return False

    def __enter__(self) -> PeakMemory:
        loaded = "torch._dynamo" in sys.modules
        self._uncompiled: Any = torch.compiler.set_stance("force_eager") if loaded else nullcontext()
        self._uncompiled.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._uncompiled.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for old in tree_leaves((args, kwargs)):
            if isinstance(old, Tensor):
                self._known.setdefault(old.untyped_storage(), None)
        out = func(*args, **kwargs)
        for new in tree_leaves(out):
            if isinstance(new, Tensor) and new.untyped_storage() not in self._known:
                storage = new.untyped_storage()
                self._known[storage] = None
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)
