"""The agent on its cart, cut down: what it keeps, its functions, how runs go on, what is said of them."""

import numpy as np
import pytest
import torch

from examples.common.arguments import settle
from examples.concrete import cartpole, cartpole_agent
from examples.concrete.cartpole import ARMS, PUBLISHED, claims, fallen
from examples.concrete.cartpole_agent import CHANGES, HELD_OUT, SCALES, Agent, Plan, Policy, as_inputs, run
from examples.concrete.cartpole_world import FORCE, STEPS, moved, rewards
from models.control import functions
from pyro_dropout import DropoutPredictive

SMALL = Plan(fits=20, updates=2, particles=4, draws=4)


@pytest.fixture(autouse=True)
def small():
    settle(0)


def agent(learned=True, seed=0):
    return Agent(learned, seed, backend="eager")


def test_what_is_found_and_written(tmp_path, capsys):
    found = cartpole.main(["--quick", "--outputs", str(tmp_path)])
    for arms in found.values():
        assert list(arms) == list(ARMS)
        for arm, histories in arms.items():
            sizes = [[seen["size"] for seen in history] for history in histories]
            assert sizes == [[23, 45, 68]] * 2  # nine tenths of 25 a time
            moving = np.ptp([seen["rates"] for seen in histories[0]], 0)
            assert (moving > 0).all() == ARMS[arm]
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000
    assert "Published reward: 16.5" in (tmp_path / "cartpole.md").read_text()
    assert "written to" in capsys.readouterr().out
    both = found["scripted"]
    assert both["learned"][0][1]["reward"] == both["fixed, 0.1"][0][1]["reward"]  # both arms see the same


def test_changes_are_those_of_the_world():
    own = agent()
    reward = own.episode(0, "random")
    state = own.inputs[:, :4] * SCALES
    force = own.inputs[:, 4] * FORCE
    after = state + own.outputs * CHANGES
    assert after[:-1] == pytest.approx(state[1:].numpy(), abs=1e-5)
    assert moved(state.double().numpy(), force.double().numpy()) == pytest.approx(after.numpy(), abs=1e-4)
    assert reward == pytest.approx(rewards(after.double().numpy()).sum(), abs=1e-4)
    assert len(force.unique()) == STEPS
    assert force.abs().max() <= FORCE
    other = agent(seed=1)
    other.episode(0, "random")
    assert not torch.equal(own.inputs, other.inputs)
    (x, y), (held_x, _) = own.parts()
    assert (len(x), len(y), len(held_x)) == (23, 23, 2)
    assert torch.equal(held_x[0], own.inputs[HELD_OUT - 1])


def test_pumping_swings_it_up_further_than_random_forces():
    highest = {}
    for how in ("random", "pumping"):
        own = agent()
        for number in range(6):
            own.episode(number, how)
        highest[how] = (own.inputs[:, 2] * SCALES[2]).cos().mean()
    assert highest["pumping"] > highest["random"] + 0.3


@pytest.mark.parametrize("learned", [True, False])
def test_functions_are_those_of_the_guide(learned):
    own = agent(learned)
    own.episode(0, "random")
    own.fit(50)
    x = own.inputs[:3]
    layers, masks = own.functions(3000)
    ours = torch.stack([functions(layers, masks, row.expand(1, 3000, -1), torch.sigmoid)[0] for row in x], 1)
    predict = DropoutPredictive(own.model, guide=own.guide, num_samples=3000, return_sites=["mean"])
    drawn = predict(x)["mean"].reshape(3000, 3, 4)
    error = ((drawn.var(0) + ours.var(0)) / 3000).sqrt()
    assert ((drawn.mean(0) - ours.mean(0)).abs() < 4 * error).all()
    assert ours.std(0) == pytest.approx(drawn.std(0), rel=0.1)
    centred = [each - each.mean(0) for each in (ours, drawn)]  # one function at several places
    joint = [(each[:, 0] * each[:, 1]).mean(0) for each in centred]
    assert joint[0] == pytest.approx(joint[1], rel=0.25, abs=2e-4)


def test_what_is_expected_of_a_policy(monkeypatch):
    """By functions that are the world itself, without noise."""
    own = agent(learned=False)
    own.episode(0, "random")
    own.fit(5)
    median, places = own.guide.median(), []

    def world(layers, masks, x, activation):
        places.append(x[0])
        state, force = x[0, :, :4] * SCALES, x[0, :, 4] * FORCE
        after = torch.tensor(moved(state.double().numpy(), force.double().numpy())).float()
        return ((after - state) / CHANGES).unsqueeze(0)

    monkeypatch.setattr(cartpole_agent, "functions", world)
    monkeypatch.setattr(own.guide, "median", lambda: {**median, "precision": torch.full((4,), 1e12)})
    with torch.no_grad():
        own.policy.weights.zero_()
        assert own.expected(50).item() == pytest.approx(0, abs=0.01)  # it goes on hanging
        assert len(places) == STEPS
        assert places[-1][:, 2].mean() * SCALES[2] == pytest.approx(np.pi, abs=0.1)
        own.policy.forward = lambda state: torch.full((len(state),), FORCE)
        places.clear()
        own.expected(50)
        state = np.array([0, 0, np.pi, 0.0])
        for _ in range(STEPS - 1):
            state = moved(state, np.array(FORCE))
        assert (places[-1][:, :2] * SCALES[:2]).mean(0) == pytest.approx(state[:2], rel=0.1)


def test_particles_are_drawn_anew_by_their_mean_and_deviation(monkeypatch):
    """Where half of them go to one place and half to another, the next are in between."""
    own = agent(learned=False)
    own.episode(0, "random")
    own.fit(5)
    median, places = own.guide.median(), []

    def two_places(layers, masks, x, activation):
        places.append(x[0, :, 0] * SCALES[0])
        side = torch.arange(x.shape[1]) % 2 * 2.0 - 1
        return torch.stack([2 * side / CHANGES[0], *[torch.zeros_like(side)] * 3], -1).unsqueeze(0)

    monkeypatch.setattr(cartpole_agent, "functions", two_places)
    monkeypatch.setattr(own.guide, "median", lambda: {**median, "precision": torch.full((4,), 1e12)})
    torch.manual_seed(0)
    with torch.no_grad():
        own.expected(2000)
    assert places[1].mean().abs() < 0.2
    assert places[1].std() == pytest.approx(2.0, rel=0.1)
    assert 0.3 < (places[1].abs() < 1).float().mean() < 0.46  # of a Gaussian .38; of two places none


def test_planning_improves_what_is_expected():
    own = agent()
    for number in range(4):
        own.episode(number, "pumping")
    own.fit(600)
    torch.manual_seed(0)
    with torch.no_grad():
        before = torch.stack([own.expected(50) for _ in range(5)])
    own.plan(60, 10)
    with torch.no_grad():
        after = torch.stack([own.expected(50) for _ in range(5)])
    assert after.mean() - before.mean() > 3 * (before.var() / 5 + after.var() / 5).sqrt()


def test_policies_have_forces_within_bounds():
    policy = Policy()
    states = 5 * torch.randn(100, 4)
    policy.weights.data *= 100
    assert policy(states).abs().max() <= FORCE
    turned = states + torch.tensor([0.0, 0.0, 2 * np.pi, 0.0])
    torch.testing.assert_close(policy(turned), policy(states), rtol=1e-2, atol=0.05)
    assert as_inputs(states, torch.full((100,), FORCE))[:, 4].tolist() == [1.0] * 100


@pytest.mark.parametrize("learned", [True, False])
def test_a_run_goes_on_after_its_last_episode(tmp_path, learned):
    whole = run(tmp_path / "whole.pt", learned, 0, 3, SMALL, "eager", scripted=False)
    run(tmp_path / "parts.pt", learned, 0, 2, SMALL, "eager", scripted=False)
    parts = run(tmp_path / "parts.pt", learned, 0, 3, SMALL, "eager", scripted=False)
    assert parts[-1]["reward"] == pytest.approx(whole[-1]["reward"], rel=1e-4)
    assert parts[-1]["rates"] == pytest.approx(whole[-1]["rates"], rel=1e-4)
    assert run(tmp_path / "parts.pt", learned, 0, 3, SMALL, "eager", scripted=False) == parts


def known(fall, reward, seeds=3, episodes=30):
    """Rates and deviations that fall by a factor, with a little scatter."""
    histories = []
    for seed in range(seeds):
        course = np.exp(-fall * np.linspace(0, 1, episodes)) * (1 + 0.01 * seed)
        histories.append(
            [
                {"rates": [r] * 3, "epistemic": [r] * 4, "reward": reward + 0.1 * seed, "seconds": [1.0, 2.0]}
                for r in course
            ]
        )
    return histories


def test_what_is_said_of_rates_deviations_and_rewards():
    both = {"fixed, 0.1": known(0.5, 16.4), "learned": known(3.0, PUBLISHED + 1)}
    found = {"policy": both, "scripted": both}
    assert fallen(both["learned"], "rates") == pytest.approx(np.full((3, 3), 3.0 * 20 / 29))
    lines = claims(found)
    assert lines[0].startswith("* 1. policy: learned rates fall, as the logarithm of a factor: inputs confirmed (+2.07")
    assert "falls more than with the fixed rate: place, m confirmed (+1.72" in lines[2]
    assert "is above that with the fixed rate: confirmed (+1.10" in lines[-1]
    assert "published one: confirmed" in lines[-1]
