"""Steps without Python: SVI that is traced once and compiled, and many networks in one step."""
