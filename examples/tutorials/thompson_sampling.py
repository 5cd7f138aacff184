"""
Thompson sampling
=================

An agent that learns from its own actions has to try what it does not know. Thompson sampling draws one function from
the posterior and takes the action that is best by it. With dropout a function is a mask, so that drawing one costs next
to nothing. This tutorial plays a contextual bandit: Thompson sampling against the greedy mean and ε-greedy choice.
"""

# %%
# The bandit
# ----------
# A context is a number between -1 and 1. Each of five arms pays best near a place of its own, 4 on average, with noise
# of deviation 1. Nobody sees what the other arms would have paid. Regret is the best arm's expected payment less that
# of the chosen arm.

import matplotlib.pyplot as plt
import pyro
import torch

from models.control import QNetwork
from pyro_dropout import AutoBernoulliDropout, DropoutPredictive, ReplicatedSVI

ARMS, BLOCKS, BLOCK, RANDOM, SEEDS = 5, 20, 10, 4, 5
centers = torch.linspace(-0.9, 0.9, ARMS)


def expected(contexts):
    return 4.0 * (-4.0 * (contexts - centers).square()).exp()  # of all arms, [..., arms]


# %%
# Agents
# ------
# ``QNetwork`` gives values of all arms, and learns from the payment of the chosen one; its noise has deviation 1. Five
# agents of a policy, in worlds of their own, learn in common steps, after every block of ten payments. The number N of
# payments so far is a buffer of the model, which may change between steps. The first four blocks are random.


def make():
    model = QNetwork((1, ARMS), size=BLOCK, lengthscale=0.1)
    return model, AutoBernoulliDropout(model, rate={"net.0.weight": 0.0, "net.2.weight": 0.1, "net.4.weight": 0.1})


def keep(svi, r, number):
    """Functions of agent r that stay as they are while it learns on."""
    predict = DropoutPredictive(svi.models[r], guide=svi.guides[r], num_samples=number, return_sites=["values"])
    return predict.draw(torch.zeros(1, 1))


# %%
# For Thompson sampling every context of a block is met by a function of its own, ``functions[k]``. The other policies
# take the mean of the same number of functions; ε-greedy acts at random in a tenth of cases.


def choose(policy, functions, contexts):
    if policy == "Thompson":
        each = [functions[k](contexts[k : k + 1])["values"] for k in range(len(contexts))]
        return torch.cat([values.reshape(1, ARMS) for values in each]).argmax(-1)
    best = functions(contexts)["values"].mean(0).argmax(-1)
    at_random = torch.rand(len(contexts)) < (0.1 if policy == "ε-greedy" else 0.0)
    return torch.where(at_random, torch.randint(ARMS, (len(contexts),)), best)


def play(policy):
    pyro.set_rng_seed(0)
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = ReplicatedSVI(make, [{}] * SEEDS, adam, seeds=range(SEEDS), backend="eager", progress=False)
    contexts = 2 * torch.rand(SEEDS, BLOCKS * BLOCK, 1, generator=torch.Generator().manual_seed(1)) - 1
    noise = torch.randn(SEEDS, BLOCKS * BLOCK, generator=torch.Generator().manual_seed(2))  # the same for all policies
    actions = torch.randint(ARMS, (SEEDS, BLOCKS * BLOCK), generator=torch.Generator().manual_seed(3))
    payments, each, kept = expected(contexts), torch.arange(SEEDS)[:, None, None], None
    for block in range(RANDOM, BLOCKS):
        known, now = block * BLOCK, slice(block * BLOCK, (block + 1) * BLOCK)
        paid = payments.gather(-1, actions.unsqueeze(-1)).squeeze(-1) + noise
        for model in svi.models:
            model.size.fill_(known)
        rows = torch.randint(known, (SEEDS, 100, 32))
        svi.scan(contexts[each, rows], actions[each, rows], paid[each, rows])
        for r in range(SEEDS):
            actions[r, now] = choose(policy, keep(svi, r, BLOCK), contexts[r, now])
        kept = kept or keep(svi, 0, 20)  # of the first agent, when it has seen the random blocks alone
    regret = payments.amax(-1) - payments.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    return regret[:, RANDOM * BLOCK :].cumsum(-1), kept


regret = {}
for policy in ("greedy", "ε-greedy", "Thompson"):
    regret[policy], kept = play(policy)
    print(f"{policy:9}regret {regret[policy][:, -1].mean():5.1f}; of each seed", regret[policy][:, -1].round().tolist())

# %%
# What the functions say
# ----------------------
# Twenty kept functions of one agent after its 40 random payments, for two of the arms. Where functions cross, their
# best arms differ, and Thompson sampling tries several. They agree more than they should: on the right arm 3 is
# underrated by all.

places = torch.linspace(-1, 1, 101).unsqueeze(-1)
values = kept(places)["values"]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for arm, color in ((1, "tab:blue"), (3, "tab:orange")):
    axes.plot(places, values[..., arm].T, color=color, alpha=0.25, lw=1)
    axes.plot(places, expected(places)[:, arm], color=color, ls="--", label=f"arm {arm}: expected payment")
axes.set(xlabel="context", ylabel="value")
axes.legend()
plt.show()

# %%
# Regret
# ------
# Means over the seeds, and bands of one standard error.

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for (policy, of), color in zip(regret.items(), ("tab:gray", "tab:orange", "tab:blue"), strict=True):
    mean, error, steps = of.mean(0), of.std(0) / SEEDS**0.5, range(1, of.shape[1] + 1)
    axes.plot(steps, mean, color=color, label=policy)
    axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
axes.set(xlabel="choices after the random ones", ylabel="cumulative regret")
axes.legend()
plt.show()

# %%
# ε-greedy goes on paying for its random choices. Thompson sampling has the least regret on average, but not clearly
# less than the greedy mean: of the five seeds it is better in two and equal or slightly worse in the others. Greedy
# choice is helped by the random start, after which no arm is unknown.
#
# What to remember
# ----------------
# ``draw`` keeps functions, and one function has one opinion everywhere: let each decide once. Dropout varies functions
# around what was seen, and says little of an arm that was never tried, so begin with some random choices: after ten of
# them in place of forty, Thompson sampling and the greedy mean were alike, or both failed.
