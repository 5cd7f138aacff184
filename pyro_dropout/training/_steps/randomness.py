"""Random numbers as a pure function of a key: what lets a traced step draw new masks at every call."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_dropout._modes import in_backward

aten = torch.ops.aten


def random_keys(number: int, device: Any = None, generator: torch.Generator | None = None) -> Tensor:
    """Of masks and all else that is random, from a generator of the CPU, PyTorch's by default, ``[number, 2]``."""
    return torch.randint(-(2**31), 2**31, (number, 2), dtype=torch.int32, generator=generator).to(device)


def drawn_by(key: Tensor | None) -> AbstractContextManager:
    """Random numbers are functions of the key; without one they are PyTorch's own."""
    return nullcontext() if key is None else KeyedRandomness(key)


def pcg4d(key: Tensor, counter: Tensor, call: int) -> tuple[Tensor, Tensor]:
    """The hash pcg4d (Jarzynski & Olano 2020, JCGT 9:3) of a counter, a call and the two words of a key.

    A counter-based generator: short enough to be fused into whatever uses the numbers, and nothing to carry along. Its
    lowest four bits are weak.

    :param key: two random words, int32 ``[2]``; keys that differ in their highest bits alone are not independent.
    :param counter: which number of the call, int32.
    :param call: which call.
    :returns: two random words for each counter, int32.
    """
    # 1013904223 in two steps, as the compiler takes numbers of more than 24 bits through a float.
    x, y, z, w = (v * 1664525 + 1013904192 + 31 for v in (counter, key.new_full((), call), key[0], key[1]))
    x = x + y * w
    y = y + z * x
    z = z + x * y
    w = w + y * z
    x, y, z, w = (v ^ _shifted(v, 16) for v in (x, y, z, w))
    x = x + y * w
    y = y + z * x
    z = z + x * y
    w = w + y * z
    return w, z


def _fraction(word: Tensor, bits: int) -> Tensor:
    """The highest bits as a number in [0, 1)."""
    return _shifted(word, 32 - bits).to(torch.float32) * 2.0**-bits


def _kept(x: Tensor) -> Tensor:
    """In memory: a compiler that fused it would make all of it anew at each use."""
    return torch.as_strided(x, x.shape, x.stride())


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: int32 has a sign, which the shift alone would copy."""
    return (x >> bits) & ((1 << (32 - bits)) - 1)


class KeyedRandomness(TorchDispatchMode):
    """Every random number drawn inside is a function of the key and of how many were drawn before it.

    :param key: two words, int32 ``[2]``, on the device of what is drawn.
    :param number: of all random numbers that will be drawn, if that is known: they are then made at once, by few
        operations. They are the same as without.
    :raises NotImplementedError: a random operation that has no such form here; more numbers than were said.

    Example::

        >>> key = torch.tensor([1, 2], dtype=torch.int32)
        >>> with KeyedRandomness(key) as drawn:
        ...     a = torch.rand(3)
        >>> with KeyedRandomness(key, drawn.number):
        ...     b = torch.rand(3)
        >>> torch.equal(a, b)
        True
    """

    def __init__(self, key: Tensor, number: int | None = None) -> None:
        super().__init__()
        self.key, self.number, self._all = key, 0, number
        self._words: list[Tensor] = []
        self._uniform: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        draw = _DRAWS.get(func)
        if draw is not None:
            if in_backward():
                raise NotImplementedError(f"{func} draws again in a backward pass (checkpointing), other numbers here")
            return draw(self, *args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise NotImplementedError(f"{func} draws random numbers that are no function of a key here")
        return func(*args, **(kwargs or {}))

    def words(self, shape: Any) -> list[Tensor]:
        """Two random words for each entry of the shape."""
        start, stop = self._next(shape)
        if self._all is None:
            return [word.reshape(shape) for word in self._made(start, stop)]
        if not self._words:
            self._words = [_kept(word) for word in self._made(0, self._all)]
        return [word[start:stop].reshape(shape) for word in self._words]

    def uniform(self, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
        """In [0, 1), with as many random bits as the type holds, at most 24, or 53 for float64."""
        dtype = dtype or torch.get_default_dtype()
        if dtype == torch.float64:
            high, low = self.words(shape)
            return (_shifted(high, 5).to(dtype) * 2.0**26 + _shifted(low, 6).to(dtype)) * 2.0**-53
        bits = {torch.float16: 11, torch.bfloat16: 8}.get(dtype, 24)  # more would round up to 1
        if bits < 24 or self._all is None:
            return _fraction(self.words(shape)[0], bits).to(dtype)
        start, stop = self._next(shape)
        if self._uniform is None:
            self._uniform = _kept(_fraction(self._made(0, self._all)[0], bits))
        return self._uniform[start:stop].reshape(shape).clone()  # which may be changed in place

    def _next(self, shape: Any) -> tuple[int, int]:
        """Where the numbers of the next draw are among all."""
        start = self.number
        self.number += torch.Size(shape).numel()
        if self.number >= 2**31:
            raise NotImplementedError(f"a run that draws {self.number} random numbers, which are more than 2^31")
        if self._all is not None and self.number > self._all:
            raise NotImplementedError(f"the model draws {self.number} random numbers, where it drew {self._all} before")
        return start, self.number

    def _made(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        counter = torch.arange(start, stop, dtype=torch.int32, device=self.key.device)
        return pcg4d(self.key, counter, call=0)

    def normal(self, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
        """Box and Muller's, from the two words of each counter."""
        dtype = dtype or torch.get_default_dtype()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        first, second = (_shifted(word, 8).to(wide) * 2.0**-24 for word in self.words(shape))
        return (torch.sqrt(-2 * torch.log(first + 2.0**-25)) * torch.cos(2 * math.pi * second)).to(dtype)

    def bernoulli(self, probability: Any, like: Tensor) -> Tensor:
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        return (self.uniform(like.shape, wide) < probability).to(like.dtype)


def _of_size(draw: Callable) -> Callable:
    def drawn(mode: KeyedRandomness, size: Any, dtype: Any = None, **_: Any) -> Tensor:
        return draw(mode, size, dtype)

    return drawn


def _like(draw: Callable) -> Callable:
    def drawn(mode: KeyedRandomness, like: Tensor, dtype: Any = None, **_: Any) -> Tensor:
        return draw(mode, like.shape, dtype or like.dtype)

    return drawn


def _in_place(draw: Callable) -> Callable:
    def drawn(mode: KeyedRandomness, out: Tensor, *args: Any, generator: Any = None, **kwargs: Any) -> Tensor:
        return out.copy_(draw(mode, out, *args, **kwargs))

    return drawn


def _uniform(mode: KeyedRandomness, like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * mode.uniform(like.shape, like.dtype)


def _normal(mode: KeyedRandomness, like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return mean + std * mode.normal(like.shape, like.dtype)


def _normal_of(mode: KeyedRandomness, mean: Any, std: Any, generator: Any = None) -> Tensor:
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return mean + std * mode.normal(shape, tensors[0].dtype)


def _exponential(mode: KeyedRandomness, like: Tensor, rate: float = 1.0) -> Tensor:
    return -torch.log1p(-mode.uniform(like.shape, like.dtype)) / rate


def _bernoulli(mode: KeyedRandomness, probability: Tensor, generator: Any = None) -> Tensor:
    return mode.bernoulli(probability, probability)


def _bernoulli_of(mode: KeyedRandomness, like: Tensor, p: Any = 0.5, generator: Any = None) -> Tensor:
    return mode.bernoulli(p, like)


def _dropout(mode: KeyedRandomness, x: Tensor, p: float, train: bool | None = True) -> tuple[Tensor, Tensor]:
    if train is False:
        return x, torch.ones_like(x, dtype=torch.bool)
    kept = mode.uniform(x.shape, torch.float32) >= p
    return x * kept.to(x.dtype) * (1 / (1 - p) if p < 1 else 0.0), kept


def _randperm(mode: KeyedRandomness, n: int, dtype: Any = None, **_: Any) -> Tensor:
    return mode.words((n,))[0].argsort().to(dtype or torch.int64)


def _randint(mode: KeyedRandomness, *args: Any, dtype: Any = None, **_: Any) -> Tensor:
    *bounds, size = args
    low, high = bounds if len(bounds) == 2 else (0, bounds[0])
    if high - low >= 2**24:
        raise NotImplementedError(f"random integers below {high - low} are no function of a key here")
    return (low + (_shifted(mode.words(size)[0], 1) % (high - low))).to(dtype or torch.int64)


_DRAWS: dict[Any, Callable] = {
    aten.rand.default: _of_size(KeyedRandomness.uniform),
    aten.randn.default: _of_size(KeyedRandomness.normal),
    aten.rand_like.default: _like(KeyedRandomness.uniform),
    aten.randn_like.default: _like(KeyedRandomness.normal),
    aten.uniform_.default: _in_place(_uniform),
    aten.normal_.default: _in_place(_normal),
    aten.normal.Tensor_Tensor: _normal_of,
    aten.normal.Tensor_float: _normal_of,
    aten.normal.float_Tensor: _normal_of,
    aten.exponential_.default: _in_place(_exponential),
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli_of,
    aten.bernoulli_.float: _in_place(_bernoulli_of),
    aten.bernoulli_.Tensor: _in_place(_bernoulli_of),
    aten.native_dropout.default: _dropout,
    aten.randperm.default: _randperm,
    aten.randint.default: _randint,
    aten.randint.low: _randint,
}
