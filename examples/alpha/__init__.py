"""BBα: Li & Gal (2017), Dropout inference in Bayesian neural networks with alpha-divergences.

``bands`` shows what α changes on two sets of synthetic data; the regression results are in ``examples.mc.uci``.
"""
