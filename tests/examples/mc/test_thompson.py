"""Agents: what they remember and learn from, how they act, what runs find and how they go on."""

import argparse

import numpy as np
import pytest
import torch

from examples.common.arguments import settle
from examples.mc import thompson, thompson_runs
from examples.mc.thompson import claims, course, late, until
from examples.mc.thompson_agents import ALWAYS, DEMO, PAPER, POLICIES, START, Agents, Memory, network
from examples.mc.thompson_runs import MARK, run, stepped, worlds_of
from pyro_dropout import DropoutPredictive


@pytest.fixture(autouse=True)
def small():
    settle(0)


def agents(policy="Thompson", setting=PAPER, seeds=(0, 1), learned=True, **changes):
    made = Agents(POLICIES[policy], setting._replace(**changes), 3, 4, list(seeds), backend="eager")
    made.memory = Memory(len(seeds), made.inputs, size=START)
    random = np.random.default_rng(0)
    for _ in range(START if learned else 0):
        observed = random.random((len(seeds), 3), dtype=np.float32)
        made.act(observed)
        no = np.zeros(len(seeds), bool)
        made.remember(random.normal(size=len(seeds)), observed + 1, no, no)
    made.learn()
    return made


def test_what_is_found_and_written(tmp_path, capsys):
    found = thompson.main(["--quick", "--steps", "1200", "--outputs", str(tmp_path)])
    assert list(found) == list(POLICIES)
    for of in found.values():
        assert of["earned"].shape == (6, 2)
        assert all(seconds > 0 for seconds in of["seconds"].values())
    rates = found["Thompson, Concrete"]["rates"]
    assert rates.shape == (2, 2, 3)  # of marks after the first step that learns
    assert (rates[..., 0] == 0).all()
    assert (np.abs(rates[..., 1:] - 0.1) > 0).all()
    assert (tmp_path / "paper.png").stat().st_size > 10_000
    assert {file.suffix for file in tmp_path.iterdir()} == {".pt", ".md", ".png", ".gif"}
    assert "steps a second" in (tmp_path / "paper.md").read_text()
    assert "written to" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*Overwriting existing|.*render")
def test_other_worlds_end(tmp_path):
    worlds = worlds_of("CartPole-v1", 2)
    worlds.reset(seed=[0, 1])
    for _ in range(12):
        observed, reward, terminated, ended, after = stepped(worlds, np.array([0, 0]))
        assert (reward == 1).all()
        assert (np.abs(after[terminated, 2]) > 0.2).all()  # what an episode ended with, not what the next begins with
        assert (np.abs(observed[ended]) <= 0.05).all()
        assert np.array_equal(after[~ended], observed[~ended])
        if ended.any():
            break
    assert ended.any()
    options = argparse.Namespace(agents=2, steps=1200, backend="eager", outputs=tmp_path)
    found = run("CartPole-v1", "Thompson", options)
    assert found["ends"].sum() > 20
    returns = course(found, "CartPole-v1")
    assert returns[-1] == pytest.approx(found["earned"][-5:].sum(0) / found["ends"][-5:].sum(0))


@pytest.mark.parametrize(
    ("setting", "policy"),
    [
        ("demo", "Thompson, Concrete"),
        pytest.param("paper", "Thompson", marks=pytest.mark.slow),
        pytest.param("CartPole-v1", "ε-greedy", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, setting, policy):
    options = argparse.Namespace(agents=2, steps=8 * MARK, backend="eager", outputs=tmp_path / "whole")
    expected = run(setting, policy, options)
    options.outputs = tmp_path / "parts"
    marks, mark = [], thompson_runs.Run.mark

    def interrupted(self):
        mark(self)
        marks.append(len(self.earned))
        if len(marks) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(thompson_runs, "SAVING", 0.0)
    monkeypatch.setattr(thompson_runs.Run, "mark", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(setting, policy, options)
    found = run(setting, policy, options)
    assert marks == [1, 2, 3, 4, 5, 6, 7, 7, 8]  # the seventh is done again
    assert np.array_equal(found["earned"], expected["earned"])
    np.testing.assert_allclose(found["rates"], expected["rates"], rtol=1e-5)
    assert found["greedy"] == pytest.approx(expected["greedy"], rel=0.05)
    monkeypatch.undo()
    assert run(setting, policy, options)["seconds"] == found["seconds"]  # read, not run


def test_memory():
    memory = Memory(2, inputs=1, size=3)
    for i in range(5):
        places = np.array([0.5, 0.99])
        memory.add(places, [[i], [-i]], [i, i], [i, i], [True, i != 4], [[i + 1], [-i - 1]])
    assert memory.state[..., 0].tolist() == [[0, 4, 2], [0, -1, -4]]
    assert memory.going.tolist() == [[1, 1, 1], [1, 1, 0]]
    state, action, reward, going, after = memory.rows(np.array([[0.0, 0.4], [0.7, 0.99]]))
    assert state[..., 0].tolist() == [[0, 4], [-4, -4]]
    assert after[..., 0].tolist() == [[1, 5], [-5, -5]]
    assert action.dtype == torch.int64
    assert reward.tolist() == [[0, 4], [4, 4]]
    assert going.tolist() == [[1, 1], [0, 0]]


def test_an_agent_with_a_memory_sees_its_last_observation_and_action():
    made = agents(setting=DEMO, learned=False)
    assert made.inputs == 3 + 3 + 4
    no, first, second = np.zeros(2, bool), np.full((2, 3), 0.1), np.full((2, 3), 0.2)
    action = made.act(first)
    assert made.memory.number == 0
    made.remember(np.zeros(2), second, no, np.array([False, True]))
    assert made.memory.state[:, 0].tolist() == pytest.approx(np.array([[0.1] * 3 + [0.0] * 7] * 2))
    seen = made.memory.after[:, 0]
    assert seen[:, :6] == pytest.approx(np.array([[0.2] * 3 + [0.1] * 3] * 2))
    assert seen[:, 6:] == pytest.approx(3 * np.eye(4)[action])
    made.act(second)
    assert made._state[0] == pytest.approx(seen[0])
    assert made._state[1, 3:].tolist() == [0.0] * 7  # of a new episode


def test_chances_of_random_actions():
    greedy, sampled = agents("ε-greedy"), agents("Thompson")
    for age, chance in ((0, 1.0), (3_000, 1.0), (101_500, 0.5), (190_150, 0.05), (250_000, ALWAYS)):
        greedy.age = age
        assert greedy.chance == pytest.approx(chance, abs=1e-6)
    for age, chance in ((4_999, 1.0), (5_000, 0.0)):
        sampled.age = age
        assert sampled.chance == chance
    assert agents("ε-greedy", learned=False).chance == 1.0


@pytest.mark.parametrize(("policy", "kept"), [("Thompson", 1), ("Thompson, 20 steps", 20)])
def test_functions_are_kept(policy, kept):
    made = agents(policy, random=0)
    no, functions = np.zeros(2, bool), []
    for _ in range(40):
        made.act(np.zeros((2, 3)))
        functions.append(made._function[1])
        made.remember(np.zeros(2), np.zeros((2, 3)), no, no)
    assert len({id(function) for function in functions}) == 40 // kept


@pytest.mark.parametrize("policy", ["Thompson", "Thompson, Concrete"])
def test_values_are_those_of_the_guides_functions(policy):
    """In the mean, and in their deviation, of draws of the guide."""
    made = agents(policy)
    for _ in range(30):
        made.learn()
    states = torch.randn(2, 1, 3)
    ours = made.values(states.expand(-1, 4000, -1), made.noise(4000))
    for r, (model, guide) in enumerate(zip(made.svi.models, made.svi.guides, strict=True)):
        drawn = DropoutPredictive(model, guide=guide, num_samples=4000, return_sites=["values"])(states[r])["values"]
        drawn = drawn.reshape(4000, 4)
        error = (drawn.var(0) / 4000 + ours[r].var(0) / 4000).sqrt()
        assert ((drawn.mean(0) - ours[r].mean(0)).abs() < 4 * error).all()
        assert drawn.std(0) == pytest.approx(ours[r].std(0), rel=0.1)
        mean = made.values(states)[r, 0]
        torch.testing.assert_close(
            mean, torch.func.functional_call(network(3, 4), _weights(model, guide), states[r])[0]
        )


def _weights(model, guide):
    biases = {f"{layer}.bias": model.net.net[layer].bias.detach() for layer in (0, 2, 4)}
    return {**biases, **{name.removeprefix("net."): value for name, value in guide.median().items()}}


def test_steps_are_those_of_the_mean_loss_with_weight_decay():
    """Without masks: half the squared error, decay of weights alone; targets by the best value, if it goes on."""
    made = agents("ε-greedy", decay=0.01, learning_rate=0.1)
    made.learn()
    made._see()
    net = network(3, 4)
    net.load_state_dict(_weights(made.svi.models[0], made.svi.guides[0]))
    batch = [torch.randn(2, 64, 3), torch.randint(4, (2, 64)), torch.randn(2, 64), torch.randint(2, (2, 64)).float()]
    batch.append(torch.randn(2, 64, 3))
    made.memory.rows = lambda places: batch
    made.learn()
    state, action, reward, going, after = (each[0] for each in batch)
    target = reward + PAPER.discount * going * net(after).amax(1).detach()
    loss = 0.5 * (net(state).gather(1, action[:, None])[:, 0] - target).square().mean()
    loss.backward()
    for name, parameter in net.named_parameters():
        decay = 0.01 * parameter if "weight" in name else 0.0
        expected = parameter - 0.1 * (parameter.grad + decay)
        torch.testing.assert_close(_weights(made.svi.models[0], made.svi.guides[0])[name], expected.detach())


def known(rewards, marks=1500, agents=4):
    spread = np.linspace(-0.01, 0.01, agents)
    earned = MARK * (np.interp(np.arange(marks), *rewards)[:, None] + spread)
    of = {"earned": earned, "ends": np.zeros_like(earned), "greedy": 2000 * (1.2 + spread), "steps": MARK * marks}
    return {**of, "greedy ends": np.zeros(agents), "seconds": {"world": 1.0, "acting": 1.0, "learning": 2.0}}


def test_what_is_said_of_rewards():
    slow, fast = known(([0, 400, 1500], [0, 2, 2])), known(([0, 60, 1500], [0, 2, 1.5]))
    assert until(slow, "paper") == pytest.approx(203 - 25, abs=4)  # mean of five marks at 1
    assert until(fast, "paper") == pytest.approx(33 - 25, abs=2)
    assert np.isinf(until(known(([0, 1500], [0, 0.5])), "paper")).all()
    assert course(slow, "paper")[100].mean() == pytest.approx(0.49)
    assert late(slow, "paper").mean() == pytest.approx(2.0)
    found = dict.fromkeys(POLICIES, fast) | {"ε-greedy": slow}
    lines = claims(found, "paper")
    assert lines[0].startswith("* 1. Thompson sampling reaches 1 sooner: confirmed")
    assert "4 of 4 pairs" in lines[0]
    assert lines[1].startswith("* 2. late, ε-greedy is ahead of Thompson sampling: confirmed")
    assert "Concrete ahead of fixed rates not settled (+0.000" in lines[2]
    assert "of ε-greedy refuted" in lines[2]
