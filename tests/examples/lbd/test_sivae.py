"""Recommendation, cut down; splits of users, what is resumed, tables and claims from measures that are known."""

import argparse

import matplotlib.image
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from examples.common.data import Choices
from examples.lbd import sivae, sivae_training
from examples.lbd.sivae_tables import by_user, claims, differences, rates_table, scores_table, training_table
from examples.lbd.sivae_training import MEASURES, METHODS, NAMES, dropout_of, measured, split_of, trained
from pyro_dropout.masks import BernoulliMask, ConcreteMask
from tests.examples.staged import staged


@staged
def test_what_is_found_and_written(tmp_path):
    arguments = ["--quick", "--outputs", str(tmp_path)]
    found = sivae.main(arguments)
    assert tuple(found) == NAMES
    for name, runs in found.items():
        assert len(runs) == 2
        for run in runs:
            assert all(len(run["mean"][measure]) == len(run["users"]) == 100 for measure in MEASURES)
            assert ("draws" in run) == (name in METHODS and name != "VAE")
            assert ("rates" in run) == (name in METHODS and METHODS[name].how != "fixed")
    text = (tmp_path / "sivae.md").read_text()
    assert all(f"| {name} |" in text for name in NAMES)
    assert matplotlib.image.imread(tmp_path / "sivae.png").std() > 0.01
    sivae.main(arguments)  # read, not trained again
    assert (tmp_path / "sivae.md").read_text() == text


@pytest.fixture
def choices():
    rng = np.random.default_rng(0)
    matrix = csr_array((rng.random((60, 40)) < 0.3).astype(np.int8))
    return Choices(matrix, np.arange(60), np.arange(40))


def test_splits_of_users(choices):
    train, (shown, found), test, users = split_of(choices, 0, held_out=10)
    assert train.shape[0] == 40
    assert shown.shape == found.shape == (10, train.shape[1])
    assert (shown.multiply(found)).nnz == 0
    both = np.diff(shown.indptr) + np.diff(found.indptr)
    assert (np.diff(found.indptr) == both // 5).all()
    order = np.random.RandomState(98765).permutation(60)
    assert users.tolist() == order[-10:].tolist()
    assert np.array_equal((test[0] + test[1]).toarray(), choices.matrix[order[-10:]].toarray())
    assert not np.array_equal(split_of(choices, 1, held_out=10).users, users)
    again = split_of(choices, 0, held_out=10)
    assert np.array_equal(again.test[1].toarray(), test[1].toarray())


def test_items_are_those_of_training_users(choices):
    order = np.random.RandomState(98765).permutation(60)
    matrix = choices.matrix.toarray()
    matrix[order[:40], 3] = 0  # an item of held-out users alone
    matrix[order[-1]] = 0  # and a user who chose too few
    matrix[order[-1], :5] = 1
    split = split_of(Choices(csr_array(matrix), choices.users, choices.items), 0, held_out=10)
    assert split.train.shape == (40, 39)
    assert split.users.tolist() == order[-10:-1].tolist()  # of five one is that item
    assert split.test[0].shape == (9, 39)


def test_what_is_shown_is_not_recommended():
    fold = tuple(csr_array(np.array([row], np.int8)) for row in ([1, 0, 0, 0] * 30, [0, 1, 0, 0] * 30))
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0] * 30])
    assert measured(scores, fold) == {measure: [1.0] for measure in MEASURES}
    assert measured(-scores, fold)["Recall@20"] == [0.0]


def test_dropouts():
    for name, (kind, learned) in {
        "VAE": (BernoulliMask, False),
        "SIVAE + CDrop": (ConcreteMask, True),
        "SIVAE + LBDrop": (BernoulliMask, True),
    }.items():
        mask = dropout_of(METHODS[name], 7).mask()
        assert type(mask) is kind
        assert mask.rate.unique().tolist() == [0.0 if name == "VAE" else 0.5]
        assert mask.rate.shape == (7 if learned else 1,)


class Net(torch.nn.Module):
    """Ranks well after its second epoch alone."""

    def __init__(self):
        super().__init__()
        self.epochs = torch.nn.Parameter(torch.zeros(()))

    def scores(self, x):
        return torch.tensor([2.0, 1.0, 0.0, 0.0] * 30) * (1 if self.epochs == 2 else -1)


def test_the_best_epoch_is_kept_and_training_resumes(tmp_path, monkeypatch):
    fold = tuple(csr_array(np.array([row] * 4, np.int8)) for row in ([1, 0, 0, 0] * 30, [0, 1, 0, 0] * 30))
    last = csr_array(np.array([[0, 0, 0, 1] * 30] * 4, np.int8))
    wrong = (fold[0], last)  # by which the second epoch would be the worst
    split = sivae_training.Split(csr_array(np.ones((6, 120), np.int8)), fold, wrong, np.arange(4))
    settings = {"batch": 3, "epochs": 4, "split": 0}
    monkeypatch.setattr(sivae_training, "SAVING", -1.0)
    seen = []

    def run(stop=None):
        net = Net()
        optim = torch.optim.SGD(net.parameters(), 0.0)

        def step(x, done):
            if done == stop:
                raise KeyboardInterrupt
            seen.append(done)
            with torch.no_grad():
                net.epochs += 0.5
            return 1.0

        return net, trained(net, optim, step, split, settings, tmp_path / "state.pt")

    with pytest.raises(KeyboardInterrupt):
        run(stop=5)
    assert seen == [0, 1, 2, 3, 4]
    net, history = run()
    assert seen[5:] == [4, 5, 6, 7]  # the epoch that was interrupted once more
    assert history[1]["NDCG@100"] == max(each["NDCG@100"] for each in history)
    assert net.epochs == 2


def known():
    """Two splits of three users, one of whom is tested in both."""
    rng = np.random.default_rng(0)
    base = [rng.random(3) for _ in range(2)]

    def runs(ahead, **kwargs):
        return [
            {"users": users, "mean": {m: (b + ahead).tolist() for m in MEASURES}, **kwargs}
            for users, b in zip(([0, 1, 2], [2, 3, 4]), base, strict=True)
        ]

    history = [{"loss": 1.0, "NDCG@100": q, "seconds": s} for q, s in ((0.1, 1.0), (0.3, 2.0), (0.2, 6.0))]
    results = {"EASE": runs(0.1), "VAE": runs(-0.05, history=history), "VAE + Drop": runs(0.0, history=history)}
    learned = {"history": history, "rates": [0.1, 0.2, *[0.5] * 16, 0.8, 0.9], "popularity": list(range(20))}
    results["SIVAE + LBDrop"] = runs(0.0, **learned)
    for run, shift in zip(results["SIVAE + LBDrop"], (0.01, 0.03), strict=True):
        run["draws"] = {m: (np.array(values) + shift).tolist() for m, values in run["mean"].items()}
    return results


def test_differences_are_by_user():
    results = known()
    assert len(by_user(results, "VAE", "NDCG@100")) == 6
    assert differences(results, "EASE", "VAE + Drop", "NDCG@100") == pytest.approx([10.0] * 5)
    found = differences(results, "SIVAE + LBDrop, draws", "VAE + Drop", "Recall@20")
    assert found == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])


def test_tables_and_claims():
    results = known()
    mean = 100 * np.concatenate([r["mean"]["NDCG@100"] for r in results["VAE"]]).mean()
    assert f"| VAE | {mean:.2f} ± " in scores_table(results)
    assert "| VAE | 3 | 2 | 0.16 | 2.00 |" in training_table(results, beta=0.2)
    assert "| SIVAE + LBDrop | 0.150 | 0.500 | 0.850 |" in rates_table(results)
    found = claims(results)
    assert "1. LBDrop before VAE + Drop: Recall@20 confirmed (+2.00), Recall@50 confirmed" in found[0]
    assert "1. LBDrop before EASE: Recall@20 refuted (-8.00)" in found[1]
    assert any(line.startswith("2. dropout of the input helps a VAE: Recall@20 confirmed (+5.00)") for line in found)
    assert len(found) == 3


def test_rising_beta(tmp_path, monkeypatch, choices):
    """Of steps, not of epochs; the cap is reached where the ramp ends."""
    split = split_of(choices, 0, held_out=10)
    options = argparse.Namespace(
        epochs=10, batch=10, beta=0.4, activation="relu", hidden=3, latent=2, draws=2, backend="eager"
    )
    betas = []
    loss = sivae_training.SemiImplicitDropout_ELBO

    def spied(extra, annealing):
        made = loss(extra, annealing=annealing)
        betas.append(annealing)
        return made

    seen = []
    monkeypatch.setattr(sivae_training, "SemiImplicitDropout_ELBO", spied)
    monkeypatch.setattr(sivae_training, "measured", lambda *args: {"NDCG@100": [0.1]})

    def fake(net, optim, step, split, settings, path):
        for done in range(40):
            step(torch.ones(10, split.train.shape[1]), done)
            seen.append(betas[0]())
        return []

    monkeypatch.setattr(sivae_training, "trained", fake)
    sivae_training.autoencoded({"method": "VAE + Drop"}, split, options, tmp_path / "state.pt")
    assert seen == pytest.approx([0.4 * min(1.0, done / (0.85 * 40)) for done in range(40)])
