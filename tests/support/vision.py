"""A member of each of torchvision's families, untrained, and what becomes of it.

torchvision is imported when a network is made, so that its absence is seen by the test that needs it.
"""

from functools import partial

import torch
from torch import nn

from tests.support.conversions import Case

NONE = "has no active dropout.*: give rate"
PLACES = r"Dropout '{}' draws a mask for each place .* drop whole channels \(nn.Dropout2d\)"
HEADS = "in InceptionAux '.*: take auxiliary heads out"


def network(name, depth=None, dropout2d=None, **options):
    """Makes one in evaluation mode.

    :param depth: the rate of stochastic depth, instead of the family's own.
    :param dropout2d: a dropout layer that shall drop whole channels.
    :param options: of the family; a function gets the size of images.
    """

    def made(size):
        from torchvision.models import get_model
        from torchvision.ops import StochasticDepth

        net = get_model(name, weights=None, **{k: v(size) if callable(v) else v for k, v in options.items()})
        for layer in net.modules():
            if isinstance(layer, StochasticDepth) and depth is not None:
                layer.p = depth
        if dropout2d is not None:
            net.set_submodule(dropout2d, nn.Dropout2d(net.get_submodule(dropout2d).p))
        return _visible(net.eval())

    return made


def _visible(net):
    """Parameters that start at zero, or almost, hide what stands before them: heads, scales of residual branches."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    return net


def _with_rate(case, rate=0.1):
    """A network as it comes, and with given rates."""
    return [case, case._replace(rate=rate, refused="")]


def _with_depth(name, layers, make=network, refused="", **options):
    """A network with stochastic depth as it comes, and at rate 0: its dropouts, or those that are given rates.

    :param layers: by the name of a layer of stochastic depth in its block, the last layers of the branches it drops.
    """

    def dropouts(net):
        found = dict(options.get("dropouts", {}))
        for path, layer in net.named_modules():
            block, _, attribute = path.rpartition(".")
            if (
                attribute in layers
                and getattr(layer, "p", 0) > 0
                and getattr(net.get_submodule(block), "use_res_connect", True)
            ):
                for number, last in enumerate(layers[attribute](net.get_submodule(block))):
                    found[f"{block}.{last}.output"] = (path, number)
        return found

    case = Case(f"{name}, depth 0", make(name, depth=0.0), **options)
    yield case._replace(name=name, make=make(name), dropouts=dropouts, refused=refused)
    yield from [case] if case.dropouts else _with_rate(case._replace(refused=NONE))


def _last_norm(block):
    """Of EfficientNet, whose branches end in batch normalisation."""
    return [f"block.{len(block.block) - 1}.1"]


def _segmented(name, dropout, weight):
    """A segmentation network as it comes, and with channels dropped whole."""
    make, main = partial(network, name, weights_backbone=None), {"output": _main}
    yield Case(name, make(), refused=PLACES.format(dropout), **main)
    yield Case(f"{name}, Dropout2d", make(dropout2d=dropout), {weight: dropout}, **main)


def _main(out):
    return out["out"]


squeezenet, plain, heads = "squeezenet1_1", {"aux_logits": False, "init_weights": False}, {"init_weights": False}
vit = partial(network, "vit_b_16", image_size=lambda size: size)
maxvit = partial(network, input_size=lambda size: (size, size))
last = {"classifier.1.weight": "classifier.0"}
two = {"classifier.3.weight": "classifier.2", "classifier.6.weight": "classifier.5"}

CASES = [
    Case("alexnet", network("alexnet"), {**last, "classifier.4.weight": "classifier.3"}),
    Case("alexnet", network("alexnet"), rate=0.1, refused="masks already: leave it out"),
    Case("vgg11", network("vgg11"), two),
    Case("vgg11_bn", network("vgg11_bn"), two),
    *_with_rate(Case("resnet18", network("resnet18"), refused=NONE)),
    *_with_rate(Case("densenet121", network("densenet121"), refused=NONE)),
    Case("densenet121, drop_rate=0.2", network("densenet121", drop_rate=0.2), refused="_DenseLayer .* followed by cat"),
    Case(squeezenet, network(squeezenet), refused=PLACES.format("classifier.0")),
    Case(f"{squeezenet}, Dropout2d", network(squeezenet, dropout2d="classifier.0"), last),
    Case("googlenet", network("googlenet", **heads), refused=HEADS),
    Case("googlenet, no heads", network("googlenet", **plain), {"fc.weight": "dropout"}),
    Case("inception_v3", network("inception_v3", **heads), refused=HEADS, sizes=(299, 331)),
    Case("inception_v3, no heads", network("inception_v3", **plain), {"fc.weight": "dropout"}, sizes=(96, 299)),
    Case("mobilenet_v2", network("mobilenet_v2"), last),
    Case("mobilenet_v3_small", network("mobilenet_v3_small"), {"classifier.3.weight": "classifier.2"}),
    *_with_depth("efficientnet_b0", {"stochastic_depth": _last_norm}, dropouts=last),
    *_with_depth("efficientnet_v2_s", {}, refused="Nor does it mask .* stands behind SiLU", dropouts=last),
    *_with_rate(Case("regnet_y_400mf", network("regnet_y_400mf"), refused=NONE)),
    Case("mnasnet1_0", network("mnasnet1_0"), last),
    *_with_rate(Case("shufflenet_v2_x1_0", network("shufflenet_v2_x1_0"), refused=NONE)),
    *_with_depth("convnext_tiny", {"stochastic_depth": lambda _: ["block.5"]}),
    *_with_depth("swin_t", {"stochastic_depth": lambda _: ["attn.proj", "mlp.3"]}),
    *_with_rate(Case("vit_b_16", vit(), refused=NONE, fixed=True)),
    Case("vit_b_16, dropout=0.1", vit(dropout=0.1), refused="followed by LayerNorm", fixed=True),
    Case(
        "vit_b_16, attention_dropout=0.1",
        vit(attention_dropout=0.1),
        refused=r"has dropout inside it \(0.1 in MultiheadAttention\).*: set it to 0",
        fixed=True,
    ),
    *_with_depth(
        "maxvit_t",
        {
            "stochastic_depth": lambda _: ["layers.conv_c"],
            "stochastic_dropout": lambda _: ["attn_layer.1.merge", "mlp_layer.3"],
        },
        maxvit,
        **{"sizes": (224, 448), "fixed": True},  # whole windows in each of its stages
    ),
    *_segmented("fcn_resnet50", "classifier.3", "classifier.4.weight"),
    *_segmented("deeplabv3_resnet50", "classifier.0.project.3", "classifier.1.weight"),
    *_with_rate(
        Case(
            "lraspp_mobilenet_v3_large",
            network("lraspp_mobilenet_v3_large", weights_backbone=None),
            refused=NONE,
            output=_main,
        )
    ),
]
