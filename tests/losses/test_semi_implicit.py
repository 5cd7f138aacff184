"""The bound of LBD eq. 6 against all masks of few items: values, gradients, order in V; another model, global masks."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal

from pyro_dropout import AutoBernoulliDropout, BayesianModule, CompiledSVI, TraceDropout_ELBO
from pyro_dropout.losses import SemiImplicitDropout_ELBO
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from pyro_dropout.nn import AuxiliaryDropout

F64 = torch.float64
ITEMS = 8
NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
WEIGHTS = WEIGHTS / WEIGHTS.sum()
X = torch.tensor([[1.0, 0, 1, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]], dtype=F64)


def all_masks(keep):
    """And how likely each is."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(keep))), dtype=F64)
    return masks, (masks * keep + (1 - masks) * (1 - keep)).prod(-1)


class Autoencoder:
    """One latent number for each datum, from items that are dropped; learned rates by item."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def parameter(*shape, scale=1.0):
            return torch.nn.Parameter(scale * torch.randn(shape, dtype=F64, generator=generator))

        self.parameters = {
            "weight": parameter(ITEMS),
            "log_scale": parameter(ITEMS, scale=0.5),
            "bias": parameter(),
            "decoder": parameter(ITEMS),
            "logits": parameter(ITEMS),
        }

    def model(self, x, size=None):
        decoder = pyro.param("decoder", self.parameters["decoder"])
        with pyro.plate("data", size or len(x), subsample_size=len(x)):
            eta = pyro.sample("eta", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            logits = eta.unsqueeze(-1) * decoder
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x, size=None, relevant=True, everywhere=False):
        names = ("weight", "log_scale", "bias", "logits")
        p = {name: pyro.param(name, self.parameters[name]) for name in names}
        mask = BernoulliMask(logits=p["logits"], units=ITEMS)
        infer = {"is_auxiliary": True, **({"relevant": x != 0} if relevant else {})}
        if everywhere:  # one mask for all data
            z = pyro.sample("mask", mask, infer={"is_auxiliary": True})
            z = z.unsqueeze(-2) if z.dim() == 1 else z
        with pyro.plate("data", size or len(x), subsample_size=len(x)):
            if not everywhere:
                z = pyro.sample("mask", mask, infer=infer)
            h = x * z / mask.keep
            pyro.sample("eta", dist.Normal(h @ p["weight"] + p["bias"], (h @ p["log_scale"] - 1).exp()))

    def exact(self, extra, x=X):
        """The negative bound, by all masks and by quadrature over the latent; ``extra`` None for the mixture's ELBO."""
        p = self.parameters
        keep = torch.sigmoid(p["logits"])
        total = torch.zeros((), dtype=F64)
        for row in x:
            own = row != 0  # the masks of other items change nothing
            masks, chance = all_masks(keep[own])
            h = row[own] * masks / keep[own]
            mean, scale = h @ p["weight"][own] + p["bias"], (h @ p["log_scale"][own] - 1).exp()
            eta = mean[:, None] + scale[:, None] * NODES  # [masks, nodes]
            joint = dist.Normal(0.0, 1.0).log_prob(eta)
            joint = joint + dist.Bernoulli(logits=eta[..., None] * p["decoder"]).log_prob(row).sum(-1)
            under = dist.Normal(mean, scale).log_prob(eta[..., None])  # [masks, nodes, other masks]
            own = torch.diagonal(under, dim1=0, dim2=2).T
            if extra is None:
                mixed = (under + chance.log()).logsumexp(-1)
            elif extra == 0:
                mixed = own
            elif extra == 1:
                mixed = (torch.logaddexp(own[..., None], under) - math.log(2)) @ chance
            else:
                both = torch.logaddexp(torch.logaddexp(own[..., None, None], under[..., None]), under[..., None, :])
                mixed = torch.einsum("znab,a,b->zn", both - math.log(3), chance, chance)
            total = total + chance @ ((joint - mixed) @ WEIGHTS)
        return -total


@pytest.fixture(autouse=True)
def _settled():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with pyro.settings.context(module_local_params=True):
        yield


def estimates(loss, of, x=X, number=1500, **kwargs):
    """Values and gradients of so many steps."""
    parameters = list(of.parameters.values())
    values, gradients = [], []
    for _ in range(number):
        value = loss.differentiable_loss(of.model, lambda x: of.guide(x, **kwargs), x)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
        values.append(value.item())
    return torch.tensor(values, dtype=F64), torch.stack(gradients)


def within(samples, expected, errors=4.0):
    error = samples.std(0) / len(samples) ** 0.5
    assert ((samples.mean(0) - expected).abs() <= errors * error + 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_rises_with_masks_to_that_of_the_mixture(seed):
    """Of the enumeration itself: what the estimates are held to."""
    with torch.no_grad():
        bounds = [-Autoencoder(seed).exact(extra).item() for extra in (0, 1, 2, None)]
    assert bounds == sorted(bounds)
    assert bounds[-1] - bounds[0] > 0.1


EACH = [(extra, gradient) for extra in (0, 1, 2) for gradient in ("arm", "disarm", "reinforce")]
FAST = [(0, "reinforce"), (1, "arm"), (2, "disarm")]


@pytest.mark.parametrize(
    ("extra", "gradient"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow) for case in EACH],
)
def test_values_and_gradients_are_unbiased(extra, gradient):
    of = Autoencoder()
    expected = of.exact(extra)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(of.parameters.values()))])
    values, gradients = estimates(SemiImplicitDropout_ELBO(extra, gradient=gradient), of)
    within(values, expected.detach())
    within(gradients, exact)


def test_what_is_not_relevant_is_noise():
    """Estimates restricted to a datum's own items are unbiased as those of all items are, and less noisy."""
    of = Autoencoder()
    exact = torch.autograd.grad(of.exact(1), of.parameters["logits"])[0]
    deviations = {}
    for relevant in (True, False):
        gradients = estimates(SemiImplicitDropout_ELBO(1), of, relevant=relevant)[1][:, -ITEMS:]
        within(gradients, exact)
        deviations[relevant] = gradients.std(0)
    assert deviations[True].norm() < 0.7 * deviations[False].norm()


def test_many_masks_reach_the_mixture():
    of = Autoencoder()
    with torch.no_grad():
        exact, two = of.exact(None).item(), of.exact(2).item()
    loss = SemiImplicitDropout_ELBO(60)
    values = torch.tensor([loss.loss(of.model, of.guide, X) for _ in range(2000)], dtype=F64)
    error = values.std() / 2000**0.5
    assert exact - 4 * error < values.mean() < exact + 4 * error + 0.1 * (two - exact)


def test_particles_subsamples_and_annealing():
    of = Autoencoder()
    expected = of.exact(1).detach()
    values, _ = estimates(SemiImplicitDropout_ELBO(1, num_particles=7), of, number=400)
    within(values, expected)
    plain, beta = SemiImplicitDropout_ELBO(1), SemiImplicitDropout_ELBO(1, annealing=lambda: 0.0)
    values = torch.tensor([beta.loss(of.model, of.guide, X) for _ in range(800)], dtype=F64)
    with torch.no_grad():
        halves = [of.exact(1, X[i : i + 1]).item() for i in range(2)]
    assert values.mean() < expected  # the likelihood alone
    some = torch.tensor(
        [SemiImplicitDropout_ELBO(1, annealing=0.3).loss(of.model, of.guide, X) for _ in range(1500)], dtype=F64
    )
    # Linear in β: between the likelihood alone and the whole bound.
    mixed = 0.7 * values.mean() + 0.3 * expected
    assert abs(some.mean() - mixed) < 4 * (some.var() / 1500 + 0.49 * values.var() / 800) ** 0.5
    assert 0.2 * (expected - values.mean()) > 6 * (some.var() / 1500 + 0.49 * values.var() / 800) ** 0.5  # β² is seen
    for row, half in enumerate(halves):
        one = X[row : row + 1]
        found = [plain.loss(lambda x: of.model(x, 10), lambda x: of.guide(x, 10), one) for _ in range(800)]
        within(torch.tensor(found, dtype=F64), torch.tensor(10 * half, dtype=F64))


def test_one_mask_for_all_data():
    """The density of a mixture is then that of all latents together: one product under the mean, not under the sum."""
    of = Autoencoder()
    p = of.parameters
    values = []
    loss = SemiImplicitDropout_ELBO(1)
    for _ in range(1500):
        values.append(loss.loss(of.model, lambda x: of.guide(x, everywhere=True), X))
    with torch.no_grad():
        some = X.any(0)
        keep = torch.sigmoid(p["logits"])[some]
        masks, chance = all_masks(keep)
        h = X[:, None, some] * masks / keep  # [data, masks, items]
        mean, scale = h @ p["weight"][some] + p["bias"], (h @ p["log_scale"][some] - 1).exp()
        eta = mean[..., None] + scale[..., None] * NODES  # [data, masks, nodes]
        joint = dist.Normal(0.0, 1.0).log_prob(eta)
        joint = joint + dist.Bernoulli(logits=eta[..., None] * p["decoder"]).log_prob(X[:, None, None]).sum(-1)
        under = dist.Normal(mean[:, None, None], scale[:, None, None]).log_prob(eta[..., None])  # and other masks
        first, second = (torch.diagonal(each, dim1=0, dim2=2).T for each in under)  # [masks, nodes]
        own = first[:, :, None] + second[:, None, :]
        other = under[0][:, :, None] + under[1][:, None, :]  # [masks, nodes, nodes, other masks]
        mixed = (torch.logaddexp(own[..., None], other) - math.log(2)) @ chance
        total = (joint[0][:, :, None] + joint[1][:, None, :] - mixed) @ WEIGHTS @ WEIGHTS
        expected = -(chance @ total)
    within(torch.tensor(values, dtype=F64), expected)
    with pytest.raises(ValueError, match="latent 'eta' is in plate 'data', a subsample, but not all masks are"):
        loss.loss(lambda x: of.model(x, 10), lambda x: of.guide(x, 10, everywhere=True), X)


class Encoder(torch.nn.Module):
    """What ``Autoencoder.guide`` writes out, as a network with dropout in it."""

    def __init__(self, of, dropout):
        super().__init__()
        dropout.logits = of.parameters["logits"]
        self.dropout, self.linear = dropout, torch.nn.Linear(ITEMS, 2, dtype=F64)
        of.parameters = {"decoder": of.parameters["decoder"], **dict(self.named_parameters())}
        self.of = of

    def guide(self, x):
        pyro.module("encoder", self)
        with pyro.plate("data", len(x)):
            mean, log_scale = self.linear(self.dropout(x)).unbind(-1)
            pyro.sample("eta", dist.Normal(mean, log_scale.exp()))


@pytest.mark.parametrize("sparse", [True, False])
def test_dropout_in_an_encoder(sparse):
    of = Autoencoder()
    old = dict(of.parameters)
    encoder = Encoder(of, AuxiliaryDropout(ITEMS, learnable=True, per_unit=True, sparse=sparse).double())
    with torch.no_grad():
        encoder.linear.weight.copy_(torch.stack([old["weight"], old["log_scale"]]))
        encoder.linear.bias.copy_(torch.stack([old["bias"], torch.tensor(-1.0, dtype=F64)]))
    exact = Autoencoder().exact(1)
    of.guide = encoder.guide
    values, gradients = estimates(SemiImplicitDropout_ELBO(1), of)
    within(values, exact.detach())
    found = dict(zip(of.parameters, gradients.split([p.numel() for p in of.parameters.values()], 1), strict=True))
    assert list(found) == ["decoder", "dropout.logits", "linear.weight", "linear.bias"]
    other = Autoencoder()
    within(found["dropout.logits"], torch.autograd.grad(other.exact(1), other.parameters["logits"])[0])
    slopes = torch.autograd.grad(other.exact(1), [other.parameters["weight"], other.parameters["log_scale"]])
    within(found["linear.weight"], torch.cat(slopes))


def test_relaxed_masks():
    """One item, by quadrature over two masks and the latent; rates learn through the draw."""
    of = Autoencoder()
    p = {
        name: torch.nn.Parameter(torch.tensor(v, dtype=F64)) for name, v in {"w": 0.9, "logit": 0.3, "out": 1.2}.items()
    }
    of.parameters, temperature = p, 0.5

    def model(x):
        with pyro.plate("data", len(x)):
            eta = pyro.sample("eta", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=eta * p["out"]), obs=x[:, 0])

    def guide(x):
        mask = ConcreteMask(logits=p["logit"].reshape(1), units=1, temperature=temperature)
        with pyro.plate("data", len(x)):
            z = pyro.sample("mask", mask, infer={"is_auxiliary": True})
            pyro.sample("eta", dist.Normal((x * z / mask.keep)[..., 0] * p["w"], 0.4))

    u = (torch.arange(400, dtype=F64) + 0.5) / 400
    mean = p["w"] * torch.sigmoid((p["logit"] + torch.logit(u)) / temperature) / torch.sigmoid(p["logit"])
    eta = mean[:, None] + 0.4 * NODES
    own = dist.Normal(mean[:, None], 0.4).log_prob(eta)
    other = dist.Normal(mean, 0.4).log_prob(eta[..., None])
    mixed = (torch.logaddexp(own[..., None], other) - math.log(2)).mean(-1)
    joint = dist.Normal(0.0, 1.0).log_prob(eta) + dist.Bernoulli(logits=eta * p["out"]).log_prob(
        torch.ones((), dtype=F64)
    )
    expected = -((joint - mixed) @ WEIGHTS).mean()
    exact = torch.stack(torch.autograd.grad(expected, list(p.values())))
    of.model, of.guide = model, guide
    values, gradients = estimates(SemiImplicitDropout_ELBO(1), of, x=torch.ones(1, 1, dtype=F64))
    within(values, expected.detach())
    within(gradients, exact)


class Chain:
    """No autoencoder of items: numbers with noise, a latent that another depends on, one of no mask."""

    def __init__(self):
        self.parameters = {
            name: torch.nn.Parameter(torch.tensor(value, dtype=F64))
            for name, value in {"slope": 0.7, "second": -0.4, "level_mean": 0.2, "log_noise": -0.3}.items()
        }
        self.logits = torch.nn.Parameter(torch.tensor([0.4, 1.0], dtype=F64))

    def model(self, x):
        level = pyro.sample("level", dist.Normal(torch.zeros((), dtype=F64), 2.0))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros((), dtype=F64), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal((b + level).unsqueeze(-1), 1.0).expand([*b.shape, 2]).to_event(1), obs=x)

    def guide(self, x):
        p = self.parameters
        for name, parameter in {**p, "logits": self.logits}.items():
            pyro.param(name, parameter)
        mask = BernoulliMask(logits=self.logits, units=2)
        pyro.sample("level", dist.Normal(p["level_mean"], 0.5))
        with pyro.plate("data", len(x)):
            z = pyro.sample("mask", mask, infer={"is_auxiliary": True})
            h = (x * z / mask.keep).sum(-1)
            a = pyro.sample("a", dist.Normal(p["slope"] * h, p["log_noise"].exp()))
            pyro.sample("b", dist.Normal(p["second"] * h + 0.5 * a, 0.8))

    def exact(self, x, extra):
        """By all masks, or pairs of them; the level in closed form."""
        p = self.parameters
        keep = torch.sigmoid(self.logits)
        masks, chance = all_masks(keep)
        level = dist.Normal(p["level_mean"], 0.5)
        total = -torch.distributions.kl_divergence(level, dist.Normal(torch.zeros((), dtype=F64), 2.0))
        for row in x:
            h = (row * masks / keep).sum(-1)[:, None, None]  # [masks, nodes of a, nodes of b]
            a = p["slope"] * h + p["log_noise"].exp() * NODES[:, None]
            b = p["second"] * h + 0.5 * a + 0.8 * NODES
            prior = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(a, 1.0).log_prob(b)
            # E (x - b - level)² over the level
            fit = -0.5 * ((row - (b + p["level_mean"])[..., None]) ** 2 + 0.25 + math.log(2 * math.pi)).sum(-1)

            def under(h, a=a, b=b):
                of_a = dist.Normal(p["slope"] * h, p["log_noise"].exp()).log_prob(a)
                return of_a + dist.Normal(p["second"] * h + 0.5 * a, 0.8).log_prob(b)

            own, others = under(h), torch.stack([under(each) for each in h.flatten()], -1)
            mixed = (torch.logaddexp(own[..., None], others) - math.log(2)) @ chance if extra else own
            total = total + chance @ ((prior + fit - mixed) @ WEIGHTS @ WEIGHTS)
        return -total


@pytest.mark.parametrize("extra", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_another_model_with_two_latents_and_one_of_no_mask(extra):
    of, x = Chain(), torch.tensor([[0.5, -1.0], [1.5, 0.3]], dtype=F64)
    parameters = [*of.parameters.values(), of.logits]
    expected = of.exact(x, extra)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(expected, parameters)])
    loss, values, gradients = SemiImplicitDropout_ELBO(extra), [], []
    for _ in range(2500):
        value = loss.differentiable_loss(of.model, of.guide, x)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
        values.append(value.item())
    within(torch.tensor(values, dtype=F64), expected.detach())
    within(torch.stack(gradients), exact)


def test_compiled_steps_are_eager_ones():
    """Also where β changes between them."""
    found = {}
    for kind in ("SVI", "CompiledSVI"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        of, beta = Autoencoder(), [1.0]
        loss = SemiImplicitDropout_ELBO(2, annealing=lambda beta=beta: beta[0])
        make = pyro.infer.SVI if kind == "SVI" else lambda *args: CompiledSVI(*args, backend="eager", progress=False)
        svi = make(of.model, of.guide, pyro.optim.Adam({"lr": 0.01}), loss)
        losses = []
        for step in range(600):
            beta[0] = 1.0 if step < 300 else 0.2
            losses.append(svi.step(X))
        found[kind] = torch.tensor(losses)
    for part in (slice(100, 300), slice(400, 600)):
        means = [losses[part].mean() for losses in found.values()]
        errors = [losses[part].std() / 200**0.5 for losses in found.values()]
        assert abs(means[0] - means[1]) < 4 * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    assert found["CompiledSVI"][400:].mean() < found["CompiledSVI"][100:300].mean() - 0.5


@pytest.mark.parametrize("extra", [0, 1])
def test_relevance_is_of_data_alone(extra):
    first, second = (AuxiliaryDropout(ITEMS, learnable=True, sparse=True, name=name) for name in ("one", "two"))

    def guide(x):
        pyro.module("first", first), pyro.module("second", second)
        with pyro.plate("data", len(x)):
            h = second.double()(torch.relu(first.double()(x)))
            pyro.sample("eta", dist.Normal(h.sum(-1), 1.0))

    with pytest.raises(ValueError, match=r"of mask 'two' are relevant depends on other masks .*sparse=False"):
        SemiImplicitDropout_ELBO(extra).loss_and_grads(Autoencoder().model, guide, X)
    second.sparse = False
    assert math.isfinite(SemiImplicitDropout_ELBO(extra).loss_and_grads(Autoencoder().model, guide, X))


@pytest.mark.parametrize("extra", [0, 2])
def test_a_latent_that_is_not_reparametrised_is_refused(extra):
    """Its value would be right, its gradient 0."""
    of = Autoencoder()

    def model(x):
        with pyro.plate("data", len(x)):
            eta = pyro.sample("eta", dist.Bernoulli(torch.full((), 0.3, dtype=F64)))
            pyro.sample("x", dist.Bernoulli(logits=eta.unsqueeze(-1) * of.parameters["decoder"]).to_event(1), obs=x)

    def guide(x):
        mask = BernoulliMask(0.5, units=ITEMS)
        with pyro.plate("data", len(x)):
            z = pyro.sample("mask", mask, infer={"is_auxiliary": True})
            pyro.sample("eta", dist.Bernoulli(logits=(x * z) @ of.parameters["weight"]))

    with pytest.raises(NotImplementedError, match="latent 'eta' depends on masks and is Bernoulli, which is not"):
        SemiImplicitDropout_ELBO(extra).loss_and_grads(model, guide, X)


@pytest.mark.parametrize("auto", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_the_latent_of_an_autoguide_is_no_mask(auto):
    """Without a mask the value is that of the ELBO."""

    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    guide, x = auto(model, init_scale=0.5), torch.tensor([0.5, 1.0])
    values = {}
    for loss in (TraceDropout_ELBO(masks="draw"), SemiImplicitDropout_ELBO(0), SemiImplicitDropout_ELBO(2)):
        pyro.set_rng_seed(0)
        values[loss] = torch.tensor([loss.loss(model, guide, x) for _ in range(600)])
    plain, *others = values.values()
    for found in others:
        assert abs(found.mean() - plain.mean()) < 4 * (2 * plain.var() / 600) ** 0.5


@pytest.mark.parametrize(("value", "found"), [("a", "'a'"), (math.inf, "inf"), (None, "None")])
def test_annealing_must_be_a_number(value, found):
    with pytest.raises(ValueError, match=f"annealing must be .*{found}"):
        SemiImplicitDropout_ELBO(annealing=value)


@pytest.mark.parametrize("extra", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_weights_with_masks_of_their_own_beside_them(extra):
    """Members of the weights' masks are no components: rates that are learned give the value of fixed ones."""
    found = {}
    for learnable in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        decoder = BayesianModule(torch.nn.Linear(2, ITEMS), event_dim=1)
        of = Autoencoder()
        x = X.float()

        def model(x, decoder=decoder):
            data = pyro.plate("data", len(x))
            with data:
                eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            logits = decoder(torch.stack([eta, eta**2], -1))
            with data:
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        weights = AutoBernoulliDropout(decoder, rate=0.4, learnable=learnable)

        def guide(x, of=of, weights=weights):
            weights(torch.zeros(len(x), 2))
            mask = BernoulliMask(logits=of.parameters["logits"].float().detach(), units=ITEMS)
            with pyro.plate("data", len(x)):
                z = pyro.sample("mask", mask, infer={"is_auxiliary": True})
                h = x * z / mask.keep
                pyro.sample("eta", dist.Normal(h @ of.parameters["weight"].float(), 0.5))

        loss = SemiImplicitDropout_ELBO(extra)
        found[learnable] = torch.tensor([loss.loss(model, guide, x) for _ in range(1500)])
        loss.loss_and_grads(model, guide, x)
    error = sum(values.var() / 1500 for values in found.values()) ** 0.5
    assert abs(found[True].mean() - found[False].mean()) < 4 * error


def test_what_cannot_be_told_from_masks_of_weights_is_refused():
    """An auxiliary that is no Mask has no members, where rates of another are learned."""
    of = Autoencoder()

    def guide(x):
        plain = dist.Bernoulli(torch.full((ITEMS,), 0.5, dtype=F64)).to_event(1)
        learned = BernoulliMask(logits=of.parameters["logits"], units=ITEMS)
        with pyro.plate("data", len(x)):
            pyro.sample("learned", learned, infer={"is_auxiliary": True})
            z = pyro.sample("mask", plain, infer={"is_auxiliary": True})
            pyro.sample("eta", dist.Normal((x * z) @ of.parameters["weight"], 1.0))

    with pytest.raises(NotImplementedError, match="latent 'eta' has a batch of shape"):
        SemiImplicitDropout_ELBO(1).loss_and_grads(of.model, guide, X)
