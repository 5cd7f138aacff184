"""The temperature against scikit-learn's, a grid of numpy, and logits whose temperature is known."""

import numpy as np
import pytest
import scipy.special
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from pyro_dropout.calibration import fit_temperature


def data(draws=3, size=400, classes=4, sharpness=3.0, seed=0):
    """Logits that are too sure by a factor, and labels of the distribution without it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(draws, size, classes)) * 0.5 + 2 * rng.normal(size=(size, classes))
    probs = scipy.special.softmax(logits, -1).mean(0)
    labels = np.array([rng.choice(classes, p=p) for p in probs])
    return sharpness * logits, labels


class Scores(ClassifierMixin, BaseEstimator):
    """Takes logits for inputs."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return x.argmax(-1)


def test_one_draw_is_scikit_learns():
    logits, labels = data(draws=1)
    estimator = Scores().fit(logits[0], labels)
    theirs = CalibratedClassifierCV(FrozenEstimator(estimator), method="temperature").fit(logits[0], labels)
    temperature = fit_temperature(torch.from_numpy(logits), torch.from_numpy(labels))
    ours = scipy.special.softmax(logits[0] / temperature, -1)
    np.testing.assert_allclose(ours, theirs.predict_proba(logits[0]), atol=2e-4)
    assert 2.0 < temperature < 4.5


def likelihood(logits, labels, temperature):
    """By numpy, of all draws together."""
    probs = scipy.special.softmax(logits / temperature, -1).mean(0)
    return np.log(probs[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0])
def test_draws_together_are_most_likely(sharpness):
    logits, labels = data(sharpness=sharpness)
    found = fit_temperature(logits, labels)
    best = likelihood(logits, labels, found)
    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert likelihood(logits, labels, found * factor) < best
    assert found == pytest.approx(sharpness, rel=0.25)  # the labels' own


def test_the_mean_of_draws_is_no_single_network():
    """Draws that disagree are less sure together: their temperature is lower than that of each."""
    logits, labels = data()
    together, alone = fit_temperature(logits, labels), fit_temperature(logits[:1], labels)
    assert together < alone - 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes_and_labelled_arrays(dtype):
    logits, labels = data()
    found = fit_temperature(torch.from_numpy(logits).to(dtype), torch.from_numpy(labels).int())
    assert found == pytest.approx(fit_temperature(logits, labels), rel=1e-2 if dtype == torch.float16 else 1e-5)
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(logits, dims=("draw", "datum", "class"), coords={"datum": np.arange(400)})
    of_data = xarray.DataArray(labels, dims=("datum",), coords={"datum": np.arange(400)})
    assert fit_temperature(array, of_data[::-1]) == pytest.approx(fit_temperature(logits, labels), rel=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_what_has_no_temperature_is_refused(sign, unit):
    logits = unit * sign * torch.eye(3).repeat(1, 2, 1)
    with pytest.raises(ValueError, match="the lower" if sign > 0 else "the higher"):
        fit_temperature(logits, torch.arange(3).repeat(2))
    with pytest.raises(ValueError, match="must differ between the classes"):
        fit_temperature(torch.ones(2, 6, 3), torch.arange(3).repeat(2))


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_logits_of_any_size(unit):
    logits, labels = data()
    assert fit_temperature(unit * logits, labels) == pytest.approx(unit * fit_temperature(logits, labels), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16])
def test_labels_of_small_integers(dtype):
    """Which do not hold the number of classes."""
    torch.manual_seed(0)
    logits = torch.randn(2, 500, 300)
    labels = torch.randint(100, (500,))
    logits[:, torch.arange(500), labels] += 2.0
    assert fit_temperature(logits, labels.to(dtype)) == fit_temperature(logits, labels)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(3), TypeError, "integers, but found torch.float32"),
        (torch.zeros(3, dtype=torch.bool), TypeError, "integers"),
        (torch.tensor([0, 1]), ValueError, r"each of the 3 data of logits, but found shape \(2,\)"),
        (torch.tensor([0, 1, 2]), ValueError, "0 to 1, but found 0 to 2"),
        (torch.tensor([0, -1, 1]), ValueError, "found -1 to 1"),
    ],
)
def test_wrong_labels(labels, error, message):
    with pytest.raises(error, match=message):
        fit_temperature(torch.randn(2, 3, 2), labels)
