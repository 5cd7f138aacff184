"""Segmentation networks on CamVid: what is masked in them, how they are trained."""

from __future__ import annotations

import argparse
from functools import cache
from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from examples.common.arguments import add_backend, add_outputs, count, script, settle
from examples.common.data.camvid import UNLABELLED, half_size, load_camvid
from examples.common.engines import add_engine
from examples.common.fits import Data, Fitted, Recipe, fitted
from examples.common.segmentation_scores import CLASSES, iou, judged, labels_of, mean_of
from models.segmentation import (
    FC_DENSENET56,
    FC_DENSENET67,
    FC_DENSENET103,
    SMALL,
    FCDenseNet,
    Segmentation,
    has_dropout,
)
from pyro_dropout import AutoBernoulliDropout, AutoConcreteDropout, TraceDropout_ELBO

TINY = {"first": 8, "down": (1, 1), "middle": 2, "up": (1, 1), "growth": 4}  # to see that it runs
SIZES = {"tiny": TINY, "small": SMALL, "56": FC_DENSENET56, "67": FC_DENSENET67, "103": FC_DENSENET103}


class Dropout(NamedTuple):
    """What a network masks, and how.

    :param rate: of dropping; where learning starts, where it is learned.
    :param how: ``"fixed"``, or learned with ``"relaxed"`` or ``"hard"`` masks.
    :param where: ``"all"`` layers that have dropout in the published network, by their inputs (CD); or those of the
        ``"middle"`` block, by their outputs (LBD).
    """

    rate: float = 0.2
    how: str = "fixed"
    where: str = "all"

    @property
    def name(self) -> str:
        return f"{self.where}-{self.how}-{self.rate:g}"

    def of(self, mask: str) -> float:
        return self.rate if has_dropout(mask) and (self.where == "all" or ".middle." in mask) else 0.0

    def guide(self, model: Segmentation) -> Any:
        middle = [f"net.{name}" for name, layer in model.net.net.named_modules() if _is_masked(name, layer)]
        units: Any = "input" if self.where == "all" else dict.fromkeys(middle, "output")
        if self.how == "relaxed":
            return AutoConcreteDropout(model, self.of, units=units)
        return AutoBernoulliDropout(model, self.of, units=units, learnable=self.how == "hard")


def _is_masked(name: str, layer: Any) -> bool:
    return name.startswith("middle.") and isinstance(layer, torch.nn.Conv2d)


def add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=SIZES, default="small", help="of FC-DenseNet (default small: 23 dropouts)")
    parser.add_argument("--epochs", type=count, default=100, help="(default 100; published 700 and 750)")
    parser.add_argument("--every", type=count, default=1, help="epochs between looks at validation images (default 1)")
    parser.add_argument("--crop", type=count, default=112, help="side of training crops (default 112)")
    parser.add_argument("--batch", type=count, default=4, help="crops of a step (default 4)")
    parser.add_argument("--images", type=count, default=367, help="of each part at most (default all)")
    parser.add_argument("--seeds", type=count, default=1, help="networks of each kind (default 1)")
    parser.add_argument("--draws", type=count, default=20, help="of a prediction (default 20)")
    parser.add_argument("--processes", type=count, default=1, help="that share the networks (default 1)")
    add_engine(parser)
    parser.add_argument("--whole", action="store_true", help="images of 360 × 480 pixels, not of half that side")
    parser.add_argument("--bfloat16", action="store_true", help="networks compute in it; losses and rates do not")
    parser.add_argument("--device", type=torch.device, default="cpu", help="of networks (default cpu; --full: cuda)")
    parser.add_argument(
        "--full",
        action="store_true",
        help="the published size: FC-DenseNet103, whole images, crops of 224, batches of 3, 750 epochs; in bfloat16",
    )


def options_of(name: str, doc: str | None, arguments: list[str] | None, outputs: str) -> argparse.Namespace:
    parser = script(name, doc or "")
    add_training(parser)
    add_backend(parser, "cudagraphs")
    add_outputs(parser, default=outputs)
    parser.add_argument("--quick", action="store_true", help="cut down to a minute or two, to see that it runs")
    known = parser.parse_known_args(arguments)[0]
    if known.full:
        parser.set_defaults(size="103", whole=True, crop=224, batch=3, epochs=750, bfloat16=True, device="cuda")
    if known.quick:
        quick = {"size": "tiny", "epochs": 2, "crop": 16, "images": 3, "batch": 3, "draws": 3, "backend": "eager"}
        parser.set_defaults(**quick, outputs=parser.get_default("outputs") / "quick")
    return parser.parse_args(arguments)


@cache
def images(part: str, whole: bool, number: int) -> Data:
    """Pixels ``[n, height, width, 3]`` of bytes, and labels."""
    found = load_camvid(part, number)
    x, y = found if whole else half_size(found)
    return torch.from_numpy(x), torch.from_numpy(y)


def as_inputs(x: Tensor) -> Tensor:
    """Bytes ``[..., height, width, 3]`` as what networks take, ``[..., 3, height, width]``."""
    return x.movedim(-1, -3).float() / 127.5 - 1


class Crops:
    """Random crops, turned left to right for every other, of rows ``[steps, batch]``; the seed and the step decide."""

    def __init__(self, data: Data, side: int, seed: int, device: torch.device | str = "cpu") -> None:
        if side > min(data[1].shape[1:]):
            raise ValueError(f"crops of side {side} do not fit into images of {tuple(data[1].shape[1:])}: give --crop")
        self.data, self.side, self.seed, self.device = data, side, seed, device

    def __call__(self, rows: Tensor, first: int) -> Data:
        made = [self._of(step, first + i) for i, step in enumerate(rows)]
        x, y = (torch.stack(parts) for parts in zip(*made, strict=True))
        return as_inputs(x.to(self.device)), y.to(self.device).long()

    def _of(self, rows: Tensor, step: int) -> Data:
        x, y = self.data
        generator = torch.Generator().manual_seed(self.seed * 10**7 + step)
        crops = []
        for row in rows.tolist():
            top, left = (int(torch.randint(full - self.side + 1, (), generator=generator)) for full in y.shape[1:])
            place = (row, slice(top, top + self.side), slice(left, left + self.side))
            flip = bool(torch.randint(2, (), generator=generator))
            crops.append([part.flip(1) if flip else part for part in (x[place], y[place])])
        x, y = (torch.stack(parts) for parts in zip(*crops, strict=True))
        return x, y


def weigh_entropy(guide: Any, weight: float) -> None:
    """Of all masks in the loss: the guide's scale, where the prior has the model's."""
    forward = guide.forward

    def weighed(*args: Any, **kwargs: Any) -> Any:
        with poutine.scale(scale=weight):
            return forward(*args, **kwargs)

    guide.forward = weighed


def trained(dropout: Dropout, seed: int, options: argparse.Namespace, entropy: float = 1.0) -> Fitted:
    """From its last state on; what is seen on the way: rates, and IoU of validation images.

    :param entropy: the weight of that of masks; 1 is the bound on the evidence.
    """
    settle(seed)
    train, (x, y) = images("train", options.whole, options.images), images("val", options.whole, options.images)
    pixels = y[0].numel()
    crops = max(1, round(len(train[0]) * pixels / options.crop**2))  # that images have: what the prior is weighed by

    def make() -> tuple[Segmentation, Any]:
        net = FCDenseNet(CLASSES, **SIZES[options.size])
        model = Segmentation(net, crops, ignored=UNLABELLED, autocast=torch.bfloat16 if options.bfloat16 else None)
        model.to(options.device)
        guide = dropout.guide(model)
        if entropy != 1:
            weigh_entropy(guide, entropy)
        return model, guide

    def look(model: Any, guide: Any, ended: bool) -> dict[str, Any]:
        rates = {name: float(rate) for name, rate in guide.rates().items() if has_dropout(name)}
        found = {"rates": rates, "IoU": iou(labels_of(mean_of(model, guide, as_inputs), x), y)}
        return {**found, **(judgement(model, guide, options) if ended else {})}

    in_epoch = max(1, len(train[0]) // options.batch)
    recipe = Recipe(
        options.epochs * in_epoch,
        options.batch,
        options.every * in_epoch,
        "rmsprop",
        1e-3,
        seed=seed,
        backend=options.backend,
    )
    about = {**dropout._asdict(), "size": options.size, "crop": options.crop, "draws": options.draws}
    about |= {"whole": options.whole, "bfloat16": options.bfloat16}
    about |= {"entropy": entropy} if entropy != 1 else {}
    loss = TraceDropout_ELBO(masks="draw")  # batch normalisation mixes the images of a batch
    path = options.outputs / f"{dropout.name}-seed-{seed}.pt"
    return fitted(path, make, loss, train, recipe, look, about, Crops(train, options.crop, seed, options.device))


def judgement(model: Any, guide: Any, options: argparse.Namespace) -> dict[str, Any]:
    """By way of predicting what test images say, with thresholds of validation images."""
    parts = {part: images(part, options.whole, options.images) for part in ("val", "test")}
    ways = (
        ["mean"] if not any(bool((torch.as_tensor(r) > 0).any()) for r in guide.rates().values()) else ["mean", "draws"]
    )
    return {way: judged(model, guide, parts, as_inputs, way, options.draws) for way in ways}
