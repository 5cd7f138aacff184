"""The README's code runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_the_quickstart_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["guide"].rates().keys() == {"net.0.weight", "net.2.weight"}
    rmse = (namespace["moments"].mean - namespace["y_test"]).square().mean().sqrt()
    assert rmse < 0.9 * namespace["y_test"].std()
    assert "elpd_loo" in capsys.readouterr().out
