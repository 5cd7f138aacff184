"""CD: Gal, Hron & Kendall (2017), Concrete dropout.

``synthetic_uncertainty`` has what more data take away and what they cannot; the regression results are in
``examples.mc.uci``.
"""
