"""Networks whose weights are random: any ``torch.nn.Module`` as a component of a Pyro model.

``BayesianModule`` (``module``) makes a sample site of each parameter and runs the network with the sampled values in
their places; the network's class is neither copied nor changed. It knows no guide: the same object runs under a dropout
guide, under ``AutoNormal`` and under NUTS. ``slots`` says where a parameter stood and which of its units a mask may
switch; ``_full_prior`` gives its prior the parameter's shape. Sampled weights may have batch dimensions, of particles,
draws or plates of networks, which layers of PyTorch do not take: ``_batching`` merges them with the data's
(``_merging``, which runs what precedes the first mask once for all draws), maps over them, or takes them in slices (a
``_call`` is what it runs); where a network mixes the rows of its batch (``_mixing``) draws never meet. ``auxiliary`` is
dropout in a guide's own network. ``priors`` takes PyTorch's weight decay to a prior and back.
"""

from pyro_dropout.nn.auxiliary import AuxiliaryDropout
from pyro_dropout.nn.module import BayesianModule
from pyro_dropout.nn.priors import lengthscale_of, weight_decay_of

__all__ = ["AuxiliaryDropout", "BayesianModule", "lengthscale_of", "weight_decay_of"]
