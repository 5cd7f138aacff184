"""Objectives of dropout posteriors, as Pyro ELBOs.

``elbo`` is the negative ELBO of the whole data set: the KL in closed form, for hard and relaxed masks, and the expected
log-likelihood from one mask per datum, or per draw. ``renyi`` replaces its data term by the black-box α energy,
``semi_implicit`` the KL of latents that depend on masks by a bound of their mixture; a further objective is one more
such subclass. All evaluate no density of a dense weight, take any other latent as
``TraceMeanField_ELBO`` does (``_terms``), and estimate the gradient of hard masks' rates from members that they
evaluate in one pass, for which a model must broadcast (``_broadcasting``). Masks per datum are refused where data know
each other's masks (``_independence``), an index that the guide draws itself where the model has one (``_subsamples``).
A step whose loss or gradient is not finite is refused, with the name of what was not (``nonfinite``), and leaves
parameters as they were. ``_runs`` has what a run of guide and model gives.
"""

from pyro_dropout.losses.elbo import TraceDropout_ELBO
from pyro_dropout.losses.renyi import RenyiDropout_ELBO
from pyro_dropout.losses.semi_implicit import SemiImplicitDropout_ELBO

__all__ = ["RenyiDropout_ELBO", "SemiImplicitDropout_ELBO", "TraceDropout_ELBO"]
