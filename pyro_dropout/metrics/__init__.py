"""Measures of predictive distributions: numbers that judge.

All take draws on the first dimension, as tensors or as arrays that ArviZ labelled (``_labels``), and know no model. For
classes (``classification``): entropies of predictions, mutual information (BALD), variation ratio, accuracy against
uncertainty. For numbers (``regression``): coverage and score of intervals, CRPS, calibration of quantiles. In
``selective`` the risk of what is given where it is certain enough, in ``moments`` means, variances by their sources and
log-likelihoods of both. What torchmetrics, scikit-learn and ArviZ have is not here: calibration error of class
probabilities, Jaccard index, Brier score, areas under curves of classifiers, LOO.
"""

from pyro_dropout.metrics.classification import (
    expected_entropy,
    least_confidence,
    mutual_information,
    pavpu,
    predictive_entropy,
    uncertainty_thresholds,
    variation_ratio,
)
from pyro_dropout.metrics.moments import PredictiveMoments, merge, predictive_log_likelihood, predictive_moments
from pyro_dropout.metrics.regression import (
    calibration_error,
    crps,
    interval_coverage,
    interval_score,
    quantile_coverage,
)
from pyro_dropout.metrics.selective import RiskCoverage, risk_coverage

__all__ = [
    "PredictiveMoments",
    "RiskCoverage",
    "calibration_error",
    "crps",
    "expected_entropy",
    "interval_coverage",
    "interval_score",
    "least_confidence",
    "merge",
    "mutual_information",
    "pavpu",
    "predictive_entropy",
    "predictive_log_likelihood",
    "predictive_moments",
    "quantile_coverage",
    "risk_coverage",
    "uncertainty_thresholds",
    "variation_ratio",
]
