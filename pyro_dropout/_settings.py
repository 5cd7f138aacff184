"""What a user may want to set for a machine, registered with ``pyro.settings``.

=============================== ============= ========================================================================
setting                         default       what it bounds
=============================== ============= ========================================================================
``dropout_memory_share``        0.7           share of ``DropoutPredictive``'s ``max_memory`` that measured tensors may
                                              take; the rest is for what kernels need inside one operation
``dropout_cached_activations``  2^20          entries of a layer's activations at once, where no gradient is taken: as
                                              many as caches hold, few for matrix products
``dropout_row_block``           2^26          float64 entries of a temporary matrix of entropic regression, 512 MiB
``dropout_energy_block``        2^24          entries of a temporary tensor of ``RenyiDropout_ELBO``'s gradient of rates
``dropout_take_out_above``      0.3           share of dropped units above which a large layer's kept units are taken
                                              out instead of masked; 1 never does
=============================== ============= ========================================================================

Example::

    >>> import pyro
    >>> with pyro.settings.context(dropout_cached_activations=2**22):
    ...     pyro.settings.get("dropout_cached_activations")
    4194304

They change speed and memory, never a distribution. Other constants of the code are no settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro

memory_share: float = 0.7
cached_activations: int = 2**20
row_block: int = 2**26
energy_block: int = 2**24
take_out_above: float = 0.3


def _share(name: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= 1):
            raise ValueError(f"dropout_{name} is a share between 0 and 1, but found {value!r}")
        if name == "memory_share" and value == 0:
            raise ValueError("dropout_memory_share must leave some memory, but found 0")

    return check


def _entries(name: str) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if isinstance(value, bool) or not (isinstance(value, int) and value > 0):
            raise ValueError(f"dropout_{name} is a number of entries, at least 1, but found {value!r}")

    return check


for _name, _check in {
    "memory_share": _share,
    "cached_activations": _entries,
    "row_block": _entries,
    "energy_block": _entries,
    "take_out_above": _share,
}.items():
    pyro.settings.register(f"dropout_{_name}", __name__, _name, _check(_name))
