"""Names in code type become links: our own into the reference, those of other libraries into their documentation.

Pages and docstrings can so be read as they are, and no build needs a connection. Addresses that other libraries change
are mended in the tables below.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

PYRO = "https://docs.pyro.ai/en/stable/{}".format
AUTOGUIDE = "https://docs.pyro.ai/en/stable/infer.autoguide.html#pyro.infer.autoguide.{}".format
TORCH = "https://docs.pytorch.org/docs/stable/generated/{}.html".format
ARVIZ = "https://python.arviz.org/en/stable/api/generated/arviz.{}.html".format

ADDRESSES = {
    "SVI": PYRO("inference_algos.html#pyro.infer.svi.SVI"),
    "Predictive": PYRO("inference_algos.html#pyro.infer.predictive.Predictive"),
    "Trace_ELBO": PYRO("inference_algos.html#pyro.infer.trace_elbo.Trace_ELBO"),
    "TraceGraph_ELBO": PYRO("inference_algos.html#pyro.infer.tracegraph_elbo.TraceGraph_ELBO"),
    "TraceMeanField_ELBO": PYRO("inference_algos.html#pyro.infer.trace_mean_field_elbo.TraceMeanField_ELBO"),
    "NUTS": PYRO("mcmc.html#pyro.infer.mcmc.NUTS"),
    "PyroModule": PYRO("nn.html#pyro.nn.module.PyroModule"),
    "PyroSample": PYRO("nn.html#pyro.nn.module.PyroSample"),
    "PyroOptim": PYRO("optimization.html#pyro.optim.optim.PyroOptim"),
    "pyro.optim": PYRO("optimization.html"),
    "pyro.plate": PYRO("primitives.html#pyro.primitives.plate"),
    "pyro.sample": PYRO("primitives.html#pyro.primitives.sample"),
    "pyro.factor": PYRO("primitives.html#pyro.primitives.factor"),
    "pyro.set_rng_seed": PYRO("primitives.html#pyro.util.set_rng_seed"),
    "pyro.settings": PYRO("settings.html"),
    **{f"poutine.{name}": PYRO(f"poutine.html#pyro.poutine.handlers.{name}") for name in ("block", "mask", "scale")},
    **{name: AUTOGUIDE(name) for name in ("AutoNormal", "AutoDelta", "AutoGuideList", "AutoLowRankMultivariateNormal")},
    **{f"nn.{name}": TORCH(f"torch.nn.{name}") for name in ("Module", "Linear", "Dropout", "Dropout1d", "Dropout2d")},
    **{
        f"torch.{name}": TORCH(f"torch.{name}")
        for name in ("compile", "vmap", "no_grad", "inference_mode", "load", "manual_seed", "quantile", "nn.Module")
    },
    "torch.optim": "https://docs.pytorch.org/docs/stable/optim.html",
    "torch.autocast": "https://docs.pytorch.org/docs/stable/amp.html#torch.autocast",
    "torch.export": "https://docs.pytorch.org/docs/stable/export.html",
    "torch.export.export": "https://docs.pytorch.org/docs/stable/export.html#torch.export.export",
    "torch.onnx.export": "https://docs.pytorch.org/docs/stable/onnx.html",
    "torch.utils.checkpoint.checkpoint": "https://docs.pytorch.org/docs/stable/checkpoint.html",
    "torchrun": "https://docs.pytorch.org/docs/stable/elastic/run.html",
    "DistributedDataParallel": TORCH("torch.nn.parallel.DistributedDataParallel"),
    "az.loo": ARVIZ("loo"),
    "BayesianRidge": "https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.BayesianRidge.html",
    "Ridge": "https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.Ridge.html",
}
ALIASES = {
    "pyro.infer.SVI": "SVI",
    "pyro.infer.Predictive": "Predictive",
    "pyro.infer.autoguide.AutoNormal": "AutoNormal",
    "torch.utils.checkpoint": "torch.utils.checkpoint.checkpoint",
}


def address(app: Sphinx, page: str, name: str) -> str | None:
    """Where a name is documented: ours in the reference of whichever folder, such as ``CompiledSVI.scan``."""
    if found := ADDRESSES.get(ALIASES.get(name, name)):
        return found
    own = re.escape(name.removeprefix("pyro_dropout."))
    for full, entry in app.env.domains["py"].objects.items():
        if re.fullmatch(rf"pyro_dropout\.(\w+\.)?{own}", full) and entry.objtype != "module":
            return f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
    return None


def _literals(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for literal in list(doctree.findall(nodes.literal)):  # a name, or a call
        if isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        if found := address(app, page, literal.astext().partition("(")[0]):
            literal.replace_self(_link(found, literal.deepcopy()))


def _references(app: Sphinx, env: Any, node: Any, text: nodes.Node) -> nodes.reference | None:
    """Those like ``:class:`~pyro_dropout.AutoConcreteDropout```, which is in the reference of its folder."""
    found = address(app, node["refdoc"], node["reftarget"])
    return _link(found, text) if found else None


def _link(found: str, text: nodes.Node) -> nodes.reference:
    return nodes.reference("", "", text, internal=not found.startswith("https:"), refuri=found)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-resolved", _literals)
    app.connect("missing-reference", _references)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
