"""What CI runs, for each version that we declare: ``nox``, or ``nox -s lint tests-3.12`` (``pip install nox``)."""

import re
from pathlib import Path

import nox

VERSIONS = ["3.11", "3.12", "3.13"]
nox.options.sessions = ["lint", "tests", "wheel"]


@nox.session(python=VERSIONS[0])
def lint(session: nox.Session) -> None:
    session.install("--constraint", "constraints.txt", "--editable", ".[examples,test]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(python=VERSIONS)
def tests(session: nox.Session) -> None:
    session.install("--constraint", "constraints.txt", "--editable", ".[examples,test]")
    session.run("python", "-m", "pytest", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session(python=VERSIONS)
def wheel(session: nox.Session) -> None:
    """The wheel by itself: the README's program, and types as they are seen from outside."""
    root, folder = Path.cwd(), Path(session.create_tmp())
    session.install("build", "mypy")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder))
    (made,) = folder.glob("*.whl")
    session.install("--constraint", "constraints.txt", str(made))
    (program,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), flags=re.DOTALL)
    session.chdir(folder)
    session.run("python", "-c", program)
    typed = "from typing import assert_type\nfrom pyro_dropout import DisARM\nassert_type(DisARM().members, int)"
    session.run("mypy", "--config-file=", "-c", typed)  # fails where the wheel has no py.typed


@nox.session(python=VERSIONS[0])
def docs(session: nox.Session) -> None:
    session.install("--constraint", "constraints.txt", "--editable", ".[docs,examples,test]")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ".docs", "outputs/docs")
