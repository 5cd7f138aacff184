"""The language of the tables: a call that is right, and by argument the values that make it wrong."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.arguments.world import World


class Of(NamedTuple):
    """A value that is made of the world."""

    make: Callable[[World], Any]
    label: str


class Wrong(NamedTuple):
    """A wrong value, the words that the message must have where the argument's name is not what says it best.

    :param error: where Python's own convention asks for another kind.
    """

    value: Any
    words: str = ""
    error: type[Exception] | None = None


class Call(NamedTuple):
    """A public callable with right arguments.

    :param name: of what ``__all__`` has, and perhaps a method of it.
    :param function: what is called, made of the world before its state is looked at.
    :param right: arguments by name.
    :param wrong: by argument the values that make the call wrong. An argument ``_0`` goes by position, first of all.
    """

    name: str
    function: Callable[[World], Callable]
    right: Callable[[World], dict[str, Any]]
    wrong: dict[str, list[Any]]

    def made(self, world: World, **changes: Any) -> tuple[Callable, list[Any], dict[str, Any]]:
        arguments = {**self.right(world), **changes}
        arguments = {k: v.make(world) if isinstance(v, Of) else v for k, v in arguments.items()}
        positions = sorted(k for k in arguments if re.fullmatch(r"_\d", k))
        return self.function(world), [arguments.pop(k) for k in positions], arguments


class Case(NamedTuple):
    call: Call
    argument: str
    wrong: Wrong

    @property
    def words(self) -> str:
        return self.wrong.words or rf"\b{self.argument}\b"

    def __str__(self) -> str:
        value = self.wrong.value
        said = value.label if isinstance(value, Of) else getattr(value, "__name__", None) or repr(value)
        said = re.sub(" at 0x[0-9a-f]+", "", said)  # addresses differ between processes
        return f"{self.call.name}({self.argument}={' '.join(said.split())[:40]})"


def call(name: str, function: Callable, right: Any = None, /, **wrong: list[Any]) -> Call:
    return Call(name, function, right or (lambda w: {}), wrong)


def cases(calls: list[Call]) -> Iterator[Case]:
    for each in calls:
        for argument, values in each.wrong.items():
            for value in values:
                yield Case(each, argument, value if isinstance(value, Wrong) else Wrong(value))
