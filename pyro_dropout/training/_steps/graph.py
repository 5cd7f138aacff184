"""What a function does to tensors, traced once into a graph that is compiled: no Python is left in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from pyro_dropout.training._steps.internals import compile_graph, decompositions_of, one_fake_mode
from pyro_dropout.training._steps.library import Library
from pyro_dropout.training._steps.messages import first_line

aten = torch.ops.aten
_BROADCAST = 32  # entries that a number must be shared by for it to be worth a place in memory
_OPTIONS = {"cpp.min_chunk_size": 4096}  # entries of a thread: a second one costs microseconds


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, *options: Any) -> Any:
    """The same operation under the name that says that it changes running means."""
    if mean is None:
        return aten._native_batch_norm_legit.no_stats(x, weight, bias, *options)
    return aten._native_batch_norm_legit(x, weight, bias, mean, variance, *options)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    return source.to(target.dtype).expand(target.shape)


# Operations that would be mapped one entry after the other.
_WITHOUT_VMAP: dict[Any, Any] = {
    **decompositions_of([aten._native_batch_norm_legit_functional, aten.native_batch_norm_backward]),
    aten.copy.default: _copied,
}


class Traced(NamedTuple):
    """A graph of ``function(*inputs)``, and the tensors it uses beside them: parameters, buffers, constants.

    They are inputs of the graph too, after the function's own. What the function changes in place, the graph changes.
    """

    module: GraphModule
    tensors: list[Tensor]

    def changed(self) -> set[int]:
        """Identities of the tensors that the graph changes in place."""
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        tensors = dict(zip(placeholders[-len(self.tensors) :], self.tensors, strict=True))
        found = set()
        for node in self.module.graph.nodes:
            found |= {id(tensors[argument]) for argument in written_by(node) if argument in tensors}
        return found

    def out_of_place(self, inputs: Sequence[Tensor]) -> GraphModule:
        """The same graph, in which nothing but inputs is changed in place, at its end."""
        copies = [tensor.detach().clone() for tensor in (*inputs, *self.tensors)]
        function = torch.func.functionalize(self.module)
        with torch.no_grad():
            return graph_of(lambda *tensors: function(*tensors), copies, _WITHOUT_VMAP)


def written_by(node: Node) -> list[Any]:
    """Arguments that an operation changes in place."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    pairs = zip(schema.arguments, node.args, strict=False)
    return [given for argument, given in pairs if argument.alias_info is not None and argument.alias_info.is_write]


def graph_of(function: Callable[..., Any], inputs: Sequence[Tensor], decompositions: Any = None) -> GraphModule:
    """Runs the function once. Whatever it does that is no operation on tensors happens now and never again."""
    with one_fake_mode():
        return make_fx(function, decomposition_table=decompositions)(*inputs)


def trace(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Traced:
    """The graph of a function (:func:`graph_of`) that refers to tensors which are not among its inputs."""
    with _NoValues() as values, _NoArrays(values):
        module = graph_of(function, inputs, {aten.native_batch_norm.default: _batch_norm})
    graph = module.graph
    tensors: dict[int, tuple[Node, Tensor]] = {}
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op == "get_attr":
            tensor = getattr(module, node.target)
            if id(tensor) not in tensors:
                with graph.inserting_after(last):
                    last = graph.placeholder(f"tensor_{len(tensors)}")
                last.meta["val"] = tensor
                tensors[id(tensor)] = (last, tensor)
            node.replace_all_uses_with(tensors[id(tensor)][0])
            graph.erase_node(node)
        elif str(node.target).startswith("profiler.") and not node.users:
            graph.erase_node(node)
        elif _size_depends_on_values(node):
            raise NotImplementedError(f"the size of what {node.target} returns depends on values")
    graph.eliminate_dead_code()
    return Traced(GraphModule(torch.nn.Module(), graph), [tensor for _, tensor in tensors.values()])


class _NoValues(TorchDispatchMode):
    """Values of tensors become a part of no graph, as they may be others at the next call; but those of constants may,
    which are made while the function runs, of nothing that was there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constants = WeakIdKeyDictionary()
        self._written: set[int] = set()  # memory of constants that something else was written to

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        constant = func is aten.lift_fresh.default or all(map(self.is_constant, tensors))
        if func is aten._local_scalar_dense.default:
            self.check(tensors[0])
        elif func._schema.is_mutable and not constant:
            self._written.add(tensors[0].untyped_storage()._cdata)
        found = func(*args, **(kwargs or {}))
        if constant:
            self._constants.update({leaf: True for leaf in tree_leaves(found) if isinstance(leaf, Tensor)})
        return found

    def is_constant(self, tensor: Tensor) -> bool:
        return tensor in self._constants and tensor.untyped_storage()._cdata not in self._written

    def check(self, tensor: Tensor) -> None:
        if not self.is_constant(tensor):
            raise NotImplementedError(
                f"it reads the value of a tensor of shape {tuple(tensor.shape)}: compute with the tensor itself, or "
                "pass a number"
            )


class _NoArrays(TorchFunctionMode):
    """The same for values that are read past PyTorch's operations."""

    def __init__(self, values: _NoValues) -> None:
        super().__init__()
        self._values = values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READ:
            self._values.check(args[0])
        return func(*args, **(kwargs or {}))


_READ = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


def _size_depends_on_values(node: Node) -> bool:
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not aten.index.Tensor:
        return True
    indices = [index.meta["val"] for index in node.args[1] if isinstance(index, Node)]  # type: ignore[union-attr]
    return any(index.dtype in (torch.bool, torch.uint8) for index in indices)


class Compiled:
    """A graph as a function of its inputs and tensors, compiled.

    On the CPU it is compiled by another process, if none has done so before, and runs operation by operation until that
    has ended; for good, if the compiler fails.

    :param traced: the graph.
    :param inputs: tensors like those of calls.
    :param wait: until it is compiled.
    :param say: is told an error, empty where there is none, and seconds, when compiling has ended.
    """

    def __init__(self, traced: Traced, inputs: Sequence[Tensor], wait: bool, say: Callable[[str, float], None]) -> None:
        self._start, self._say = time.perf_counter(), say
        self._function: Callable[..., Sequence[Tensor]] = torch.no_grad()(traced.module.forward)
        self._library: Library | None = None
        tensors = [*inputs, *traced.tensors]
        graph = GraphModule(
            torch.nn.Module(), _without_values(_with_shared_numbers(_with_biases_apart(traced.module.graph)))
        )
        if any(t.device.type != "cpu" for t in tensors):
            error = ""
            try:
                self._function = torch.no_grad()(compile_graph(graph, tensors))
            except Exception as failure:
                error = first_line(failure)
            say(error, time.perf_counter() - self._start)
            return
        self._library = Library(graph, tensors, _OPTIONS)
        if wait:
            self._library.wait()
        self._look()

    def __call__(self, *tensors: Tensor) -> Sequence[Tensor]:
        if self._library is not None:
            self._look()
        if self._library is None:
            return self._function(*tensors)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the compiler has the other cores, for which threads would wait at each operation
        try:
            return self._function(*tensors)
        finally:
            torch.set_num_threads(threads)

    def _look(self) -> None:
        """Whether it has been compiled."""
        library = self._library
        if library is None or not library.poll():
            return
        self._library = None
        if not library.error:
            try:
                self._function = torch.no_grad()(library.load())
            except RuntimeError as error:
                library.error = first_line(error)
        self._say(library.error, time.perf_counter() - self._start)


def _with_shared_numbers(graph: Graph) -> Graph:
    """Puts what many entries share, a bias correction say, into memory: fused, each entry would compute it anew."""
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor) and not _is_cheap(node):
            users = [user for user in node.users if _entries(user) >= _BROADCAST * max(1, value.numel())]
            users = [user for user in users if _entries(user) and "mm" not in str(user.target)]
            if users:
                with graph.inserting_after(node):
                    kept = graph.call_function(aten.as_strided.default, (node, value.shape, value.stride()))
                for user in users:
                    user.replace_input_with(node, kept)
    return graph


def _without_values(graph: Graph) -> Graph:
    """Without the tensors of the trace, which the compiler would take for its own."""
    for node in graph.nodes:
        node.meta.clear()
    graph._tracer_cls = None  # as the trace's, when it is read from a file, has them again
    return graph


def _with_biases_apart(graph: Graph) -> Graph:
    """Takes biases out of matrix products, which would copy them to each row first: they are added with what follows.

    The product is kept in memory, or the compiler would put them back.
    """
    for node in list(graph.nodes):
        if node.target is aten.addmm.default and not node.kwargs:
            bias, *factors = node.args
            value = node.meta["val"]
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, tuple(factors))
                kept = graph.call_function(aten.as_strided.default, (product, value.shape, value.stride()))
                total = graph.call_function(aten.add.Tensor, (kept, bias))
            for new in (product, kept, total):
                new.meta["val"] = value
            node.replace_all_uses_with(total)
            graph.erase_node(node)
    return graph


def _is_cheap(node: Node) -> bool:
    """Constants, and views: of what they show, the start in memory would be lost too."""
    schema = getattr(node.target, "_schema", None)
    views = schema is None or any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
    return views or node.target is aten.full.default


def _entries(node: Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 0
