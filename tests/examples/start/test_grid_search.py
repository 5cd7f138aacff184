"""The example runs on a cut-down setting, and its best pair predicts."""

from examples.start.grid_search import main
from tests.examples.staged import staged


@staged
def test_it_trains_all_networks_at_once(capsys):
    main(
        [
            "--dataset",
            "yacht",
            "--steps",
            "60",
            "--folds",
            "2",
            "--restarts",
            "2",
            "--draws",
            "20",
            "--backend",
            "eager",
        ]
    )
    out = capsys.readouterr().out
    assert "32 networks in" in out
    held_out = float(out.split("log-likelihood of test points ")[1].split()[0])
    assert -6 < held_out < -1.5  # one Gaussian for all: -4.1
