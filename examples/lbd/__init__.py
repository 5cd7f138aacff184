"""LBD: Boluki et al. (2020), Learnable Bernoulli dropout for Bayesian deep learning.

``gradient_estimators`` compares how hard masks' rates can learn, where the exact gradient is known.
"""
