"""How uncertain a classifier is, and whether it is so where it is wrong."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_dropout._checks import check_counts, check_share
from pyro_dropout.metrics.labels import as_tensor, check_finite, class_probabilities, from_draws


def predictive_entropy(probs: Any) -> Any:
    r"""Entropy of the predictive distribution, in nats: all uncertainty about a label.

    .. math:: \mathrm{H}[y] = -\sum_c \bar p_c \log \bar p_c, \quad \bar p_c = \frac{1}{T} \sum_t p(y = c \mid W_t)

    :param probs: class probabilities, ``[draws, ..., classes]``, or a labelled array with the classes last.
    :returns: ``[...]``, labelled as ``probs`` is.
    :raises ValueError: entries that are no probabilities, or do not sum to one over the last dimension.

    Example::

        >>> predictive_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))  # two draws that disagree: log 2
        tensor([0.6931])
    """
    p, label = class_probabilities(probs)
    return label(_entropy(p.mean(0)))


def expected_entropy(probs: Any) -> Any:
    r"""Mean over draws of the entropy of the label, in nats: what stays uncertain if the weights were known.

    .. math:: \frac{1}{T} \sum_t \mathrm{H}[y \mid W_t]

    :param probs: class probabilities, ``[draws, ..., classes]``, or a labelled array with the classes last.
    :returns: ``[...]``, labelled as ``probs`` is.
    :raises ValueError: entries that are no probabilities, or do not sum to one over the last dimension.

    Example::

        >>> expected_entropy(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.])
    """
    p, label = class_probabilities(probs)
    return label(_entropy(p).mean(0))


def mutual_information(probs: Any) -> Any:
    r"""Mutual information of label and weights, in nats: uncertainty that more data would remove (BALD).

    .. math:: \mathrm{I}[y; W] = \mathrm{H}\Bigl[\frac{1}{T} \sum_t p(y \mid W_t)\Bigr]
        - \frac{1}{T} \sum_t \mathrm{H}[y \mid W_t]

    (Houlsby et al. 2011). With T draws at most ``log T``.

    :param probs: class probabilities, ``[draws, ..., classes]``, or a labelled array with the classes last.
    :returns: ``[...]``, labelled as ``probs`` is.
    :raises ValueError: entries that are no probabilities, or do not sum to one over the last dimension.

    Example::

        >>> mutual_information(torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]))
        tensor([0.6931, 0.0000])
    """
    p, label = class_probabilities(probs)
    return label((_entropy(p.mean(0)) - _entropy(p).mean(0)).clamp_min(0))  # below 0 by rounding alone


def least_confidence(probs: Any) -> Any:
    r"""Probability that the predicted label is wrong, by the predictive distribution (Hendrycks & Gimpel 2017):

    .. math:: 1 - \max_c \bar p_c = \sum_{c \text{ not the largest}} \bar p_c

    The sum is taken, as the difference rounds to 0 where a network is sure, and has no order there.

    :param probs: class probabilities, ``[draws, ..., classes]``, or a labelled array with the classes last.
    :returns: ``[...]``, labelled as ``probs`` is.
    :raises ValueError: entries that are no probabilities, or do not sum to one over the last dimension.

    Example::

        >>> least_confidence(torch.tensor([[[30.0, 0.0], [40.0, 0.0]]]).softmax(-1))
        tensor([9.3576e-14, 4.2484e-18])
    """
    p, label = class_probabilities(probs)
    return label(p.mean(0).sort(-1).values[..., :-1].sum(-1))


def variation_ratio(labels: Any) -> Any:
    r"""Share of sampled labels that are not the most frequent one (MC section 5.2).

    .. math:: 1 - \frac{1}{T} \max_c \sum_t 1[y_t = c]

    :param labels: one label per draw, integers ``[draws, ...]``: ``Categorical(probs).sample()``, or ``argmax`` of
        each draw. Not the argmax of the mean, which has no variation.
    :returns: ``[...]`` in [0, 1).
    :raises TypeError: labels that are no integers.

    Example::

        >>> variation_ratio(torch.tensor([[0, 2], [0, 1], [1, 0]]))
        tensor([0.3333, 0.6667])
    """
    y, label = from_draws(labels, "labels")
    if y.is_floating_point() or y.is_complex():
        raise TypeError(
            f"labels must be integers, one sampled for each draw, but found {y.dtype}: sample them with "
            "Categorical(probs).sample()"
        )
    y = y.long()
    mode = y.mode(0).values
    return label((y != mode).to(torch.get_default_dtype()).mean(0))


def pavpu(
    uncertainty: Any,
    correct: Any,
    threshold: Any = None,
    *,
    window: int | None = None,
    stride: int = 1,
    min_accuracy: float = 0.5,
    where: Any = None,
) -> Tensor:
    r"""Share of predictions that are accurate and certain, or inaccurate and uncertain (PAvPU; LBD eq. 9):

    .. math:: \frac{n_{ac} + n_{iu}}{n_{ac} + n_{au} + n_{ic} + n_{iu}}

    A prediction is uncertain if its uncertainty is *greater* than the threshold. With ``window`` w the predictions are
    patches of w × w pixels (Mukhoti & Gal 2018): uncertainty is averaged over a patch, and a patch is accurate if more
    than ``min_accuracy`` of its pixels are correct.

    :param uncertainty: such as the predictive entropy, ``[...]``, or ``[..., height, width]`` with a window.
    :param correct: whether the predicted label is right, bool of the same shape.
    :param threshold: in units of the uncertainty, one or several: :func:`uncertainty_thresholds` has those of LBD's
        figure 2. The mean uncertainty by default, the paper's other choice.
    :param window: side of a patch in pixels; the paper takes 2.
    :param stride: of the window; 1 slides it over every pixel.
    :param min_accuracy: of an accurate patch, in [0, 1).
    :param where: pixels or data that count (labelled ones), bool of the same shape.
    :returns: in [0, 1], of the threshold's shape.
    :raises ValueError: shapes that do not match, a window that does not fit, nothing to count.

    Example::

        >>> entropy, correct = torch.tensor([0.1, 0.2, 0.9, 0.8]), torch.tensor([True, True, False, True])
        >>> pavpu(entropy, correct, threshold=0.5)
        tensor(0.7500)
    """
    unsure, right = as_tensor(uncertainty, "uncertainty").double(), as_tensor(correct, "correct", like=uncertainty)
    counts = torch.ones_like(right, dtype=torch.bool) if where is None else as_tensor(where, "where", like=uncertainty)
    check_share(min_accuracy=min_accuracy)
    check_counts(stride=stride)
    if window is not None:
        check_counts(window=window)
    if not (unsure.shape == right.shape == counts.shape):
        raise ValueError(
            f"uncertainty, correct and where must have one shape, but found {tuple(unsure.shape)}, "
            f"{tuple(right.shape)} and {tuple(counts.shape)}"
        )
    if right.dtype != torch.bool or counts.dtype != torch.bool:
        raise TypeError(
            f"correct and where must be bool (labels == target), but found {right.dtype} and {counts.dtype}"
        )
    if not bool(counts.any()):
        raise ValueError("there is nothing to count: uncertainty is empty, or where is False everywhere")
    counted = unsure[counts]
    check_finite(uncertainty=counted)
    mean = counted.mean().clamp(counted.min(), counted.max())  # rounding may put it outside
    cut = mean if threshold is None else as_tensor(threshold, "threshold").to(unsure)
    if bool(cut.isnan().any()):
        raise ValueError(f"threshold must be numbers, but found {cut.tolist()}")
    if window is None:
        unsure, accurate = counted, right[counts]
    else:
        share = _patches(counts.to(unsure.dtype), window, stride)
        patches = share > 0
        sums = [_patches(torch.where(counts, t.to(unsure.dtype), 0.0), window, stride) for t in (unsure, right)]
        unsure, accuracy = (total[patches] / share[patches] for total in sums)
        accurate = accuracy > min_accuracy
        if not len(unsure):
            raise ValueError(f"no patch of {window} by {window} pixels has one that counts")
    uncertain = unsure > cut.unsqueeze(-1)
    return (uncertain != accurate).to(torch.get_default_dtype()).mean(-1)


def uncertainty_thresholds(uncertainty: Any, t: Any) -> Tensor:
    r"""LBD's thresholds of :func:`pavpu`, from the uncertainties of a validation set:

    .. math:: \min u + t (\max u - \min u), \quad t \in [0, 1]

    :param uncertainty: of each prediction, any shape.
    :param t: one or several numbers in [0, 1].
    :raises ValueError: a t outside of [0, 1].

    Example::

        >>> uncertainty_thresholds(torch.tensor([0.5, 0.1, 0.9]), [0.0, 0.25, 1.0])
        tensor([0.1000, 0.3000, 0.9000])
    """
    unsure = as_tensor(uncertainty, "uncertainty")
    if not unsure.numel():
        raise ValueError("uncertainty must have one entry or more, but found none")
    unsure = unsure if unsure.is_floating_point() else unsure.to(torch.get_default_dtype())
    t = as_tensor(t, "t").to(unsure)
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t must be in [0, 1], but found {t.tolist()}")
    check_finite(uncertainty=unsure)
    return unsure.min() + t * (unsure.max() - unsure.min())


def _patches(image: Tensor, window: int, stride: int) -> Tensor:
    """Means over windows, ``[patches]``."""
    if image.dim() < 2 or min(image.shape[-2:]) < window:
        raise ValueError(f"windows of {window} by {window} pixels do not fit into shape {tuple(image.shape)}")
    return F.avg_pool2d(image.reshape(-1, 1, *image.shape[-2:]), window, stride).flatten()


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(-1)
