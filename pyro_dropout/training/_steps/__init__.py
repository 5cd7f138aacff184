"""The machinery of compiled steps; see ``pyro_dropout.training``."""
