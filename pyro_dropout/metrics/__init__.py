"""Measures of predictive distributions, from draws on the first dimension or labelled by ArviZ.

What torchmetrics, scikit-learn and ArviZ have is not here: calibration error of class probabilities, Jaccard index,
Brier score, areas under curves, LOO.
"""

from pyro_dropout.metrics.classification import (
    expected_entropy,
    mutual_information,
    pavpu,
    predictive_entropy,
    uncertainty_thresholds,
    variation_ratio,
)
from pyro_dropout.metrics.moments import PredictiveMoments, predictive_log_likelihood, predictive_moments
from pyro_dropout.metrics.regression import (
    calibration_error,
    crps,
    interval_coverage,
    interval_score,
    quantile_coverage,
)

__all__ = [
    "PredictiveMoments",
    "calibration_error",
    "crps",
    "expected_entropy",
    "interval_coverage",
    "interval_score",
    "mutual_information",
    "pavpu",
    "predictive_entropy",
    "predictive_log_likelihood",
    "predictive_moments",
    "quantile_coverage",
    "uncertainty_thresholds",
    "variation_ratio",
]
