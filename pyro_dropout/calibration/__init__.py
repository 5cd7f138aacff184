"""What is fitted on held-out data and changes predictions.

Each is one number: a temperature of class probabilities, a threshold above which classes belong to a set, a factor of
predictive deviations. Data that a number was fitted on neither trained the network nor judge it. Numbers that judge are
in ``metrics``.
"""

from pyro_dropout.calibration.conformal import conformal_factor, conformal_threshold
from pyro_dropout.calibration.temperature import fit_temperature

__all__ = ["conformal_factor", "conformal_threshold", "fit_temperature"]
