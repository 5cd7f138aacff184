"""Tutorials as scripts of cells, which ``make docs`` runs and shows; ``README.md`` is the gallery's head."""
