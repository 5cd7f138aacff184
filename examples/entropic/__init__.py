"""ENT: Herlau, Mørup & Schmidt, Bayesian dropout: a constraint of maximum entropy, in closed form.

``qspr``: coefficient paths and intervals (figure 1 a); ``misspecification``: wrong models (figure 1 b); ``amazon``:
sentiment of reviews (figure 2).
"""
