"""Scores of pixels against torchmetrics and counts by hand."""

import numpy as np
import pyro
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_jaccard_index

from examples.common.data.camvid import UNLABELLED
from examples.common.segmentation_scores import (
    BINS,
    CLASSES,
    GRID,
    Calibration,
    Prediction,
    confusion,
    draws_of,
    iou,
    iou_by_image,
    judged,
    labels_of,
    mean_of,
)
from models.segmentation import FCDenseNet, Segmentation, has_dropout
from pyro_dropout import AutoConcreteDropout
from pyro_dropout.metrics import mutual_information, pavpu, predictive_entropy, uncertainty_thresholds


def some(number=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES + 1, (number, side, side), generator=generator)
    labels = torch.where(torch.rand(y.shape, generator=generator) < 0.6, y.clamp(max=CLASSES - 1), 3)
    return labels, y.to(torch.uint8)


def test_iou_of_all_images():
    labels, y = some()
    expected = multiclass_jaccard_index(labels, y.long(), CLASSES, ignore_index=UNLABELLED)
    assert iou(labels, y) == pytest.approx(expected.item(), abs=1e-6)
    assert confusion(labels, y).sum() == (y != UNLABELLED).sum()


def test_iou_by_image_as_lbd_has_it():
    """First image: unlabelled, 1 and 2; unions have the unlabelled pixel. Second: none unlabelled, so 0 is left out."""
    y = torch.tensor([[[UNLABELLED, 1], [1, 2]], [[0, 0], [1, 1]]], dtype=torch.uint8)
    labels = torch.tensor([[[1, 1], [2, 2]], [[0, 1], [1, 1]]])
    first = (1 / 3 + 1 / 2) / 2
    second = 2 / 3
    assert iou_by_image(labels, y) == pytest.approx((first + second) / 2)
    assert iou(labels, y) == pytest.approx((1 / 2 + 3 / 5 + 1 / 2) / 3)  # all classes, of both images
    one = torch.full((1, 2, 2), 3, dtype=torch.uint8)  # of a single class nothing is left
    assert iou_by_image(torch.cat([labels, one.long()]), torch.cat([y, one])) == pytest.approx((first + second) / 2)


def test_calibration():
    probs = torch.rand(2, 5, 6, CLASSES).pow(4)
    probs /= probs.sum(-1, keepdim=True)
    _, y = some(2, 6)
    y = y[:, :5]
    calibration = Calibration()
    for p, truth in zip(probs, y, strict=True):
        calibration.add(p, truth)
    found = calibration.result()
    known = y != UNLABELLED
    p = probs[known].numpy()
    hit = np.eye(CLASSES)[y[known].numpy()]
    edges = [(p >= k / BINS) & (p < (k + 1) / BINS) for k in range(BINS)]
    pairs = [(p[inside].mean(), hit[inside].mean()) for inside in edges if inside.any()]
    np.testing.assert_allclose(list(zip(found["probability"], found["frequency"], strict=True)), pairs, atol=1e-6)
    assert found["calibration RMSE"] == pytest.approx(np.mean([(a - b) ** 2 for a, b in pairs]) ** 0.5, abs=1e-6)
    ece = multiclass_calibration_error(probs[known], y[known].long(), CLASSES, BINS)
    assert found["ECE"] == pytest.approx(ece.item(), abs=1e-6)


@pytest.fixture
def network():
    pyro.set_rng_seed(0)
    with pyro.settings.context(module_local_params=True):
        net = FCDenseNet(CLASSES, first=4, down=(2,), middle=2, up=(2,), growth=2)
        model = Segmentation(net, size=10, ignored=UNLABELLED)
        guide = AutoConcreteDropout(model, rate=lambda site: 0.4 if has_dropout(site) else 0.0)
        guide(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))
        yield model, guide


def as_inputs(x):
    return x.movedim(-1, -3).float() / 255


def test_draws_are_the_same_functions_for_all_images(network):
    model, guide = network
    x = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    predict = draws_of(model, guide, as_inputs, 5)
    one, again = predict(x[0]), predict(x[0])
    assert torch.equal(one.probs, again.probs)
    assert torch.allclose(one.probs.sum(-1), torch.ones(8, 8))
    assert (one.epistemic > 0).any()
    mean = mean_of(model, guide, as_inputs)(x[0])
    assert not torch.allclose(mean.probs, one.probs, atol=1e-4)
    assert mean.epistemic.max() < 1e-5
    torch.testing.assert_close(predict(x).probs[0], one.probs)  # of several at once
    assert torch.equal(labels_of(predict, x)[0], one.probs.argmax(-1))


def test_uncertainty_of_a_prediction():
    draws = torch.rand(4, 3, 3, CLASSES)
    draws /= draws.sum(-1, keepdim=True)
    of = Prediction(draws.mean(0), -torch.xlogy(draws, draws).sum(-1).mean(0))
    torch.testing.assert_close(of.entropy, predictive_entropy(draws))
    torch.testing.assert_close(of.epistemic, mutual_information(draws), atol=1e-6, rtol=1e-4)


def test_what_test_images_say(network):
    model, guide = network
    x = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    _, y = some()
    other = torch.randint(256, (2, 8, 8, 3), dtype=torch.uint8)
    parts = {"val": (other, y[:2]), "test": (x, y)}
    found = judged(model, guide, parts, as_inputs, "draws", 4)
    predict = draws_of(model, guide, as_inputs, 4)
    predictions = [predict(image) for image in x]
    labels = torch.stack([p.probs.argmax(-1) for p in predictions])
    known = y != UNLABELLED
    assert found["accuracy"] == pytest.approx((labels == y)[known].double().mean().item())
    assert found["IoU"] == iou(labels, y)
    density = torch.stack([p.probs for p in predictions])[known].gather(-1, y[known].long().unsqueeze(-1)).log()
    assert found["log-likelihood"] == pytest.approx(density.mean().item(), abs=1e-5)
    assert found["PAvPU, stride 1"] != found["PAvPU, stride 2"]
    cuts = uncertainty_thresholds(torch.stack([predict(image).entropy for image in other]), GRID)  # of validation
    entropy = torch.stack([p.entropy for p in predictions])
    expected = pavpu(entropy, labels == y, cuts, window=2, stride=2, where=known)
    assert found["PAvPU, stride 2"] == pytest.approx(expected.tolist())
    assert len(found["PAvPU, stride 1"]) == 21
