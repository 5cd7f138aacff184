"""Where to begin: the whole way on one data set (``quickstart``), then whether a posterior is to be trusted.

``posterior_checks`` puts guides, NUTS and ArviZ's diagnostics beside each other; ``grid_search`` trains all networks of
a cross-validation in one step.
"""
