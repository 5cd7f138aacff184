"""Steps without Python: SVI that is traced once and compiled, and many networks in one step."""

from pyro_dropout.compiled.replicates import ReplicatedSVI
from pyro_dropout.compiled.svi import CompiledSVI

__all__ = ["CompiledSVI", "ReplicatedSVI"]
