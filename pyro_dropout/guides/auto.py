"""The dropout guides: hard masks at fixed or learned rates, relaxed masks at learned ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyro_dropout._checks import check_positive
from pyro_dropout.guides.base import DropoutGuide
from pyro_dropout.masks.distributions import BernoulliMask, ConcreteMask


class AutoBernoulliDropout(DropoutGuide):
    r"""Dropout as a posterior (MC section 3), at fixed rates or at rates that are learned (LBD):

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / (1 - \mathrm{rate}), \quad
        z_k \sim \mathrm{Bernoulli}(1 - \mathrm{rate}_k)

    for every latent site with at least two event dimensions, one ``z_k`` per input unit or channel; ``loc`` is
    learned and starts from the module's own weights. Biases, precisions and whatever else is latent go to
    ``rest``.

    With ``units="output"`` it is the layer's output units that are dropped, ``W = diag(z) · loc / (1 - rate)``, and its
    bias with them: dropout *behind* a layer, as before batch normalisation, a concatenation or a residual sum. The
    layer has one mask site, ``net.0.output.mask`` (that of input units is ``net.0.weight.mask``), and is
    ``"net.0.output"`` in ``rate`` and :meth:`~DropoutGuide.rates`.

    With ``learnable=True`` the keep logits, :math:`\mathrm{rate} = \sigma(-a)`, are parameters too. A hard mask has
    no derivative, so the loss estimates their gradient: see ``gradient`` of
    :class:`~pyro_dropout.TraceDropout_ELBO`. Stock ``Trace_ELBO`` and ``TraceGraph_ELBO`` use the score function.

    :param model: a Pyro model; it does not know about dropout.
    :param rate: probability of *dropping* a unit, in [0, 1): a number, a tensor with one per unit, or a mapping
        or function from a mask's name to either. 0 makes a site deterministic, also if rates are learned; else it is
        where learning starts. (MC's p is ``1 - rate``.)
    :param learnable: learn the rates, one per site unless ``per_unit`` or ``shared``.
    :param per_unit: learn one rate per unit.
    :param shared: learn one rate for the whole network (LBD section 3.2.1).
    :param units: which units are masked: ``"input"``, ``"output"``, ``"both"`` (by two masks), or ``"branch"``, one
        unit for all outputs of a layer (stochastic depth); ``("input", "branch")`` for both of these. Of all weights,
        or a mapping from weight sites or layers (``"net.0.weight"``, ``"net.0"``; the others have input units), or a
        function of a weight site. Of a site that no ``BayesianModule`` made the first dimension has the outputs, unless
        ``infer={"output_units": MaskedUnits(...)}`` says otherwise.
        Scales and shifts of batch (running statistics), layer and group normalisation have
        output units too, where a mapping or function names them.
    :param rest: makes the guide of all other latents from a model: ``AutoDelta``, ``AutoNormal``, a partial.
    :param init_loc_fn: Pyro initialisation strategy; it may return None to leave a site to ``rest``.
    :param create_plates: as for any AutoGuide, for subsampling plates around latents.
    :raises ValueError: ``per_unit`` or ``shared`` without ``learnable``, or both; at the first call: no weight sites,
        a rate outside [0, 1) or of a wrong shape, a name that is no site, rates to share that differ, output units of
        a recurrent layer or of parameters that layers share.

    Example::

        >>> import pyro, torch
        >>> from pyro_dropout import BayesianModule
        >>> model = BayesianModule(torch.nn.Linear(3, 1))
        >>> guide = AutoBernoulliDropout(model, rate=0.25)
        >>> guide(torch.zeros(5, 3))["weight"].mask.shape
        torch.Size([3])
        >>> guide.rates()
        {'weight': tensor(0.2500)}
        >>> pyro.clear_param_store()
        >>> guide = AutoBernoulliDropout(model, rate=0.25, units="output")
        >>> {name: value.mask.shape for name, value in guide(torch.zeros(5, 3)).items()}
        {'weight': torch.Size([1]), 'bias': torch.Size([1])}
        >>> guide.rates()
        {'output': tensor(0.2500)}
    """

    def __init__(
        self,
        model: Callable,
        rate: Any = 0.1,
        *,
        learnable: bool = False,
        per_unit: bool = False,
        shared: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, rate, learnable=learnable, per_unit=per_unit, shared=shared, **kwargs)

    def _learned_mask(self, logits: Tensor, units: int) -> BernoulliMask:
        return BernoulliMask(logits=logits, units=units, validate_args=False)


class AutoConcreteDropout(DropoutGuide):
    r"""Dropout with learned rates, through relaxed masks (CD):

    .. math:: W = \mathrm{loc} \cdot \mathrm{diag}(z) / (1 - \mathrm{rate}), \quad
        z_k = \sigma\bigl((a + \log u_k - \log(1 - u_k)) / t\bigr), \quad \mathrm{rate} = \sigma(-a)

    (CD eq. 5). The keep logit *a* is learned, per site or per unit, jointly with ``loc``. A site whose initial
    rate is 0 is deterministic and stays so. See :class:`AutoBernoulliDropout` for what is common to both.

    :param model: a Pyro model.
    :param rate: initial probability of *dropping*, as in :class:`AutoBernoulliDropout` (CD's p).
    :param temperature: t of CD eq. 5. At 0.1 the mean of ``z / keep`` is 0.9985 at rate 0.1; at 2/3 it is 0.950.
    :param per_unit: learn one rate per unit instead of one per site.
    :param shared: learn one rate for the whole network.
    :param units: which units are masked, ``"input"`` or ``"output"``, as in :class:`AutoBernoulliDropout`.
    :param rest: makes the guide of all other latents.
    :param init_loc_fn: Pyro initialisation strategy.
    :param create_plates: as for any AutoGuide.
    :raises ValueError: a temperature that is not positive and finite, and at the first call what
        :class:`AutoBernoulliDropout` raises.

    Example::

        >>> import torch
        >>> from pyro_dropout import BayesianModule
        >>> model = BayesianModule(torch.nn.Linear(3, 1))
        >>> guide = AutoConcreteDropout(model, rate=0.25, per_unit=True)
        >>> _ = guide(torch.zeros(5, 3))
        >>> guide.rates()
        {'weight': tensor([0.2500, 0.2500, 0.2500])}
    """

    relaxed = True

    def __init__(
        self,
        model: Callable,
        rate: Any = 0.1,
        *,
        temperature: float = 0.1,
        per_unit: bool = False,
        shared: bool = False,
        **kwargs: Any,
    ) -> None:
        check_positive(temperature=temperature)
        super().__init__(model, rate, learnable=True, per_unit=per_unit, shared=shared, **kwargs)
        self.temperature = temperature

    def _learned_mask(self, logits: Tensor, units: int) -> ConcreteMask:
        return ConcreteMask(logits=logits, units=units, temperature=self.temperature, validate_args=False)
