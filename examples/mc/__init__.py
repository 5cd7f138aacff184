"""MC: Gal & Ghahramani (2016), Dropout as a Bayesian approximation.

``uci`` has the table of regression results, which Concrete dropout and α-divergences extend; ``co2`` the records of
carbon dioxide and of the sun, extrapolated and interpolated.
"""
