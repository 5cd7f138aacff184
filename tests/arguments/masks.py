"""Wrong arguments of ``masks``."""

import torch

from pyro_dropout import ARM, DisARM, Reinforce
from pyro_dropout.masks import (
    BernoulliMask,
    ConcreteMask,
    DatumMask,
    LeafSource,
    Mask,
    MemberMask,
    Members,
)
from tests.arguments.cases import Of, Wrong, call
from tests.arguments.world import INF, NAN

RATES = ["0.1", -0.1, 1.0, NAN, INF, None, torch.ones(2) / 2, torch.ones(3) * NAN, [0.1, "a"], 1j]
MASK = {"rate": 0.1, "units": 3}
LEARNED = BernoulliMask(logits=torch.zeros(1, requires_grad=True), units=3)
FIXED = BernoulliMask(0.2, units=3)
Z = torch.ones(2, 5, 3)


class Bare(Mask):
    """The base class alone."""


MASKS = [
    *(
        call(
            cls.__name__,
            lambda w, cls=cls: cls,
            lambda w: dict(MASK),
            rate=RATES,
            units=[0, -1, 1.5, "3", None, True],
            logits=[Wrong(torch.zeros(1), "rate.*logits")],
        )
        for cls in (Mask, BernoulliMask, ConcreteMask)
    ),
    call(
        "BernoulliMask of logits",
        lambda w: BernoulliMask,
        lambda w: {"logits": torch.zeros(1), "units": 3},
        logits=["0", 0.5, torch.zeros(2), torch.full((3,), NAN), torch.zeros(3).long()],
    ),
    call(
        "ConcreteMask of a temperature",
        lambda w: ConcreteMask,
        lambda w: {**MASK, "temperature": 0.1},
        temperature=[0.0, -1.0, NAN, INF, "0.1", None, 1j, torch.ones(2)],
    ),
    *(
        call(f"BernoulliMask.{method}", lambda w, method=method: getattr(FIXED, method), right, **wrong)
        for method, right, wrong in [
            ("log_prob", lambda w: {"value": torch.ones(3)}, {"value": ["z", None, torch.ones(7)]}),
            ("icdf", lambda w: {"q": torch.tensor(0.5)}, {"q": ["q", None]}),
            ("sample", lambda w: {"sample_shape": (2,)}, {"sample_shape": ["a", 2.5, (-1,), None]}),
            ("expand", lambda w: {"batch_shape": (2,)}, {"batch_shape": ["a", 2.5, None, (-1,)]}),
        ]
    ),
    call(
        "ConcreteMask.log_prob",
        lambda w: ConcreteMask(0.2, units=3).log_prob,
        lambda w: {"value": torch.ones(3) / 2},
        value=["z", None, torch.ones(7)],
    ),
    call(
        "Mask of one's own",
        lambda w: lambda mask: mask.sample(),
        lambda w: {"mask": FIXED},
        mask=[Wrong(Of(lambda w: Bare(**MASK), "without sample"), "Bare.*sample")],
    ),
    call("DatumMask", lambda w: DatumMask, lambda w: {"distribution": FIXED}, distribution=["z", None, torch.ones(3)]),
    call(
        "DatumMask.draw",
        lambda w: DatumMask(FIXED).draw,
        lambda w: {"batch_shape": (5,)},
        batch_shape=["a", None, 5, (-1,), [2.5]],
    ),
    call(
        "LeafSource.of",
        lambda w: LeafSource().of,
        lambda w: {"units": 3, "like": torch.zeros(1), "batch_shape": ()},
        units=["3", 0, None],
        like=["z", None, 1.0],
        batch_shape=["a", None, (-1,)],
    ),
    call(
        "Members",
        lambda w: Members,
        lambda w: {"estimator": DisARM(), "max_plate_nesting": 1},
        estimator=["arm", None, DisARM],
        max_plate_nesting=["1", -1, 1.5, None],
    ),
    call(
        "MemberMask",
        lambda w: MemberMask,
        lambda w: {"mask": LEARNED, "estimator": DisARM(), "batch_shape": torch.Size([2, 1]), "draws": []},
        mask=["z", None, torch.ones(3)],
        estimator=["arm", None, DisARM],
        batch_shape=["a", None, (-1,)],
        draws=[None, 3],
    ),
    *(
        call(
            f"{type(estimator).__name__}.sample",
            lambda w, estimator=estimator: estimator.sample,
            lambda w: {"mask": LEARNED, "shape": torch.Size([5])},
            mask=["z", None, torch.ones(3)],
            shape=["a", None, 2.5, (-1,)],
        )
        for estimator in (ARM(), DisARM(), Reinforce())
    ),
    *(
        call(
            f"{type(estimator).__name__}.surrogate",
            lambda w, estimator=estimator: estimator.surrogate,
            lambda w: {"losses": torch.ones(2, 5), "mask": LEARNED, "z": Z, "noise": torch.ones(5, 3)},
            losses=["f", None, torch.ones(2, 4), torch.ones(())],
            mask=["z", None],
            z=["z", None, torch.ones(2, 4, 7)],
        )
        for estimator in (ARM(), DisARM(), Reinforce())
    ),
    call("Reinforce", lambda w: Reinforce, lambda w: {"members": 2}, members=[1, 0, -1, 2.0, "2", None, True]),
]
