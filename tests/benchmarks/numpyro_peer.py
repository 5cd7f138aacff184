"""The same model and objective in NumPyro: an optional extra, ``pip install -e .[numpyro]``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import numpy as np

FEATURES, SIZE, RATE, TEMPERATURE = 13, 506, 0.1, 0.1


def available() -> bool:
    return importlib.util.find_spec("numpyro") is not None


def numpyro_steps(x: np.ndarray, y: np.ndarray, width: int, steps: int) -> tuple[Callable, Callable]:
    """Jitted ``SVI.update`` on these data, and ``steps`` updates in one ``lax.scan``."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    sizes = [(width, FEATURES), (width, width), (1, width)]
    x, y = jnp.asarray(x), jnp.asarray(y)

    def model(x: jnp.ndarray, y: jnp.ndarray) -> None:
        """Weights and rates are parameters, the mask's noise auxiliary, the exact KL a factor: as in ``Regression``."""
        kl = 0.0
        h = x
        for i, (outputs, inputs) in enumerate(sizes):
            bound = 1 / math.sqrt(inputs)
            weight = numpyro.param(
                f"weight {i}", lambda key, s=(outputs, inputs), b=bound: jax.random.uniform(key, s, minval=-b, maxval=b)
            )
            bias = numpyro.param(f"bias {i}", jnp.zeros(outputs))
            logit = numpyro.param(f"logit {i}", jnp.array(math.log((1 - RATE) / RATE)))
            keep, rate = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
            u = jax.random.uniform(numpyro.prng_key(), h.shape, minval=1e-7, maxval=1 - 1e-7)
            z = jax.nn.sigmoid((logit + jnp.log(u) - jnp.log1p(-u)) / TEMPERATURE)
            h = (h * z / keep) @ weight.T + bias
            h = jax.nn.relu(h) if i < 2 else h
            entropy = -keep * jnp.log(keep) - rate * jnp.log(rate)
            kl += 0.5 * (weight**2).sum() / keep + 0.5 * (bias**2).sum()
            kl += 0.5 * math.log(2 * math.pi) * (weight.size + bias.size) - inputs * entropy
        log_precision = numpyro.param("log precision", jnp.array(0.0))
        precision = jnp.exp(log_precision)
        kl -= dist.Gamma(0.1, 0.01).log_prob(precision)
        numpyro.factor("kl", -kl)
        with numpyro.plate("data", SIZE, subsample_size=len(x)):
            numpyro.sample("obs", dist.Normal(h[:, 0], precision**-0.5), obs=y)

    def guide(x: jnp.ndarray, y: jnp.ndarray) -> None:
        pass

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = [svi.init(jax.random.PRNGKey(0), x, y)] * 2
    update = jax.jit(lambda s: svi.update(s, x, y))
    scan = jax.jit(lambda s: jax.lax.scan(lambda c, _: svi.update(c, x, y), s, None, length=steps))

    def one() -> float:
        state[0], loss = update(state[0])
        return float(loss)

    def many() -> np.ndarray:
        state[1], losses = scan(state[1])
        return np.asarray(losses)

    return one, many
