"""Groups of arrays to ArviZ, of either major version."""

from __future__ import annotations

import inspect
from typing import Any


def inference_data(az: Any, groups: dict[str, Any], coords: dict[str, Any], dims: dict[str, list[str]]) -> Any:
    """``InferenceData`` (ArviZ 0.x, groups as keyword arguments) or ``DataTree`` (1.x, groups as one mapping).

    :param az: the module ``arviz``, which is slow to import.
    """
    groups = {name: variables for name, variables in groups.items() if variables}
    if "posterior" in inspect.signature(az.from_dict).parameters:
        return az.from_dict(**groups, coords=coords, dims=dims)
    return az.from_dict(groups, coords=coords, dims=dims)
