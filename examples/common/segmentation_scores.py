"""How predictions of pixels are judged, image by image: IoU in two definitions, calibration, PAvPU, uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError

from examples.common.data.camvid import CAMVID, UNLABELLED
from pyro_dropout import DropoutPredictive
from pyro_dropout.metrics import pavpu, uncertainty_thresholds

CLASSES = len(CAMVID) - 1
BINS = 15  # of probabilities
WINDOW, STRIDES = 2, (1, 2)  # of PAvPU in pixels (LBD section 3.2.2); windows that slide, and that do not overlap
GRID = np.linspace(0, 1, 21)  # t of LBD's thresholds
AT_ONCE = 16  # images, where nothing but their labels is kept

Data = tuple[Tensor, Tensor]


class Prediction(NamedTuple):
    """Of images: class probabilities ``[..., height, width, classes]``, and the mean entropy of draws."""

    probs: Tensor
    aleatoric: Tensor

    @property
    def entropy(self) -> Tensor:
        return -torch.xlogy(self.probs, self.probs).sum(-1)

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of label and weights."""
        return (self.entropy - self.aleatoric).clamp(min=0)


Predict = Callable[[Tensor], Prediction]  # of bytes, [..., height, width, 3]


def mean_of(model: Any, guide: Any, as_inputs: Callable[[Tensor], Tensor]) -> Predict:
    """The mean network, with running statistics."""
    return _predict(model, guide, as_inputs, None)


def draws_of(model: Any, guide: Any, as_inputs: Callable[[Tensor], Tensor], draws: int) -> Predict:
    """Functions, the same for all images; their probabilities are not kept."""
    return _predict(model, guide, as_inputs, draws)


def _predict(model: Any, guide: Any, as_inputs: Callable[[Tensor], Tensor], draws: int | None) -> Predict:
    sites = ["probs", "entropy"]
    if draws is None:
        median = {name: value.unsqueeze(0) for name, value in guide.median().items()}
        predict = DropoutPredictive(model, median, return_sites=sites)
    else:
        predict = DropoutPredictive(model, guide=guide, num_samples=draws, return_sites=sites, seed=0)

    device = next(model.buffers()).device

    def of(images: Tensor) -> Prediction:
        x = as_inputs(images.to(device))
        found = predict.moments(x.reshape(-1, *x.shape[-3:]))
        means = (found[site].mean.cpu() for site in sites)
        return Prediction(*(mean.reshape(images.shape[:-3] + mean.shape[1:]) for mean in means))

    return of


def labels_of(predict: Predict, x: Tensor) -> Tensor:
    return torch.cat([predict(some).probs.argmax(-1) for some in x.split(AT_ONCE)])


def confusion(labels: Tensor, y: Tensor) -> Tensor:
    """Pixels by their label (rows) and what is predicted; of those that have a label."""
    known = y != UNLABELLED
    return torch.bincount(y[known].long() * CLASSES + labels[known], minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def iou(labels: Tensor, y: Tensor) -> float:
    """Mean over classes, of intersections and unions of all images; pixels without a label are in neither."""
    counts = confusion(labels, y).double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return float((counts.diagonal() / union)[union > 0].mean())


def iou_by_image(labels: Tensor, y: Tensor) -> float:
    """As the code of LBD has it: mean over an image's classes, then over images; unions have pixels without a label.

    Of an image's classes the first is left out, which is meant to be that of pixels without a label; an image that has
    no other counts for nothing.
    """
    found = []
    for predicted, truth in zip(labels, y, strict=True):
        present = sorted(truth.unique().tolist(), key=lambda label: (label != UNLABELLED, label))[1:]
        if not present:
            continue
        both = [((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum() for c in present]
        found.append(torch.stack(both).mean())
    return float(torch.stack(found).mean())


class Calibration:
    """Probabilities of all classes and labelled pixels in bins, and how often they come true (Kendall & Gal 2017)."""

    def __init__(self) -> None:
        self.number, self.sums, self.hits = (torch.zeros(BINS, dtype=torch.float64) for _ in range(3))
        self.top = MulticlassCalibrationError(CLASSES, BINS, ignore_index=UNLABELLED)

    def add(self, probs: Tensor, y: Tensor) -> None:
        known = y != UNLABELLED
        p, hit = probs[known], torch.nn.functional.one_hot(y[known].long(), CLASSES)
        bins = (p * BINS).long().clamp(max=BINS - 1).flatten()
        for total, values in ((self.number, torch.ones_like(p)), (self.sums, p), (self.hits, hit)):
            total.index_add_(0, bins, values.flatten().double())
        self.top.update(probs.flatten(0, -2), y.long().flatten())

    def result(self) -> dict[str, Any]:
        some = self.number > 0
        mean, frequency = (each[some] / self.number[some] for each in (self.sums, self.hits))
        return {
            "probability": mean.tolist(),
            "frequency": frequency.tolist(),
            "calibration RMSE": float((frequency - mean).square().mean().sqrt()),
            "ECE": float(self.top.compute()),
        }


def judged(
    model: Any,
    guide: Any,
    parts: dict[str, Data],
    as_inputs: Callable[[Tensor], Tensor],
    way: str,
    draws: int,
) -> dict[str, Any]:
    """What test images say. Entropies and labels of all images are kept, class probabilities of one at a time."""
    predict = mean_of(model, guide, as_inputs) if way == "mean" else draws_of(model, guide, as_inputs, draws)
    cuts = uncertainty_thresholds(torch.stack([predict(image).entropy for image in parts["val"][0]]), GRID)
    x, y = parts["test"]
    calibration, log_likelihood, pixels = Calibration(), 0.0, 0
    labels, entropy, information = [], [], []
    for image, truth, known in zip(x, y, y != UNLABELLED, strict=True):
        prediction = predict(image)
        labels.append(prediction.probs.argmax(-1))
        entropy.append(prediction.entropy)
        information.append(float(prediction.epistemic[known].mean()))
        calibration.add(prediction.probs, truth)
        own = prediction.probs[known].gather(-1, truth[known].long().unsqueeze(-1))
        log_likelihood += float(own.clamp(min=1e-12).log().sum())
        pixels += int(known.sum())
    predicted, unsure = torch.stack(labels), torch.stack(entropy)
    right, known = predicted == y, y != UNLABELLED
    curves = {f"PAvPU, stride {s}": pavpu(unsure, right, cuts, window=WINDOW, stride=s, where=known) for s in STRIDES}
    return {
        "IoU": iou(predicted, y),
        "IoU by image": iou_by_image(predicted, y),
        "accuracy": float(right[known].double().mean()),
        "log-likelihood": log_likelihood / pixels,
        "mutual information": float(np.mean(information)),
        **{name: curve.tolist() for name, curve in curves.items()},
        **calibration.result(),
    }
