"""``python -m tests.conversion_table``: which networks of torchvision convert, how exactly, and why others do not."""

import argparse
import importlib.util
import sys
import warnings

from tests.support.conversions import Case, convert
from tests.support.vision import CASES

HEAD = ["network", "rate", "images", "converts, or why not", "masked", "passes", "s", "deviation", "effect"]


def row(case: Case) -> list[str]:
    outcomes = [convert(case, size) for size in case.sizes]

    def each(values: list[str]) -> str:
        return " / ".join(dict.fromkeys(values))

    return [
        case.name,
        "" if case.rate is None else f"{case.rate:g}",
        " / ".join(map(str, case.sizes)),
        each([o.sentence or "yes" for o in outcomes]),
        each([f"{len(o.masked)}" for o in outcomes]),
        each([f"{o.passes:.1f}" for o in outcomes]),
        each([f"{o.seconds:.1f}" for o in outcomes]),
        "" if outcomes[0].sentence else f"{max(o.deviation for o in outcomes):.0e}",
        "" if outcomes[0].sentence else f"{min(o.effect for o in outcomes):.0e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of names")
    arguments = parser.parse_args()
    if importlib.util.find_spec("torchvision") is None:
        sys.exit("no torchvision: pip install --editable '.[vision]'")
    warnings.simplefilter("ignore")
    print(*HEAD, sep=" | ")
    print(*("---" for _ in HEAD), sep=" | ")
    for case in CASES:
        if case.name.startswith(tuple(arguments.only)):
            print(*row(case), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
