"""Where to begin: ``demo`` in a minute, the whole way on one data set (``quickstart``), whether a posterior is good.

``posterior_checks`` puts guides, NUTS and ArviZ's diagnostics beside each other; ``grid_search`` trains all networks of
a cross-validation in one step.
"""
