"""The Amazon example: errors are those of ridge at rate 0, an interrupted run goes on, dropout does what is claimed."""

import json

import matplotlib.image
import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import Ridge
from threadpoolctl import threadpool_limits

from examples.entropic.amazon import errors_of_split, intervals, main, paired
from tests.examples.staged import staged


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("amazon") / "made when missing"
    arguments = ["--splits", "2", "--categories", "kitchen", "--values", "3", "--outputs", str(outputs)]
    with threadpool_limits(1):  # more get in each other's way on a busy machine
        return main(arguments), outputs, arguments


def test_errors_are_those_of_ridge_where_nothing_is_dropped():
    rng = np.random.default_rng(0)
    x = scipy.sparse.csr_array(rng.poisson(0.5, (40, 60)).astype(np.float64))
    positive = rng.random(40) < 0.5
    rows = np.random.default_rng(3).permutation(40)
    test, train = rows[:10], rows[10:]
    ridge = Ridge(10.0, fit_intercept=False).fit(x[train], 2.0 * positive[train] - 1)
    expected = ((ridge.predict(x[test]) > 0) != positive[test]).mean()
    assert errors_of_split(x, positive, 3, 0.0, np.array([1.0, 10.0]))[1] == expected


def test_paired_difference():
    first, second = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[2.0, 2.0], [6.0, 2.0]])
    mean, error = paired(first, second)
    assert mean.tolist() == [2, 0]
    assert error == pytest.approx([1, 0])  # differences 1 and 3


def test_intervals():
    shrinkages = np.array([0.01, 0.1, 1.0, 10.0])
    assert intervals(np.array([True, True, False, True]), shrinkages) == "0.01 to 0.1, 10"
    assert intervals(np.zeros(4, dtype=bool), shrinkages) == "nowhere"


@staged
def test_dropout_is_better_where_it_is_tuned(run):
    errors = run[0]["full", "kitchen"]
    assert list(errors) == [0.0, 0.5]
    assert errors[0.5].shape == (2, 3)
    assert errors[0.0].mean(0).min() < 0.2
    assert errors[0.5].mean(0).min() < errors[0.0].mean(0).min()


@staged
def test_picture(run):
    assert matplotlib.image.imread(run[1] / "entropic_amazon.png").std() > 0.01


@staged
def test_a_run_goes_on_where_it_was_interrupted(run, monkeypatch):
    results, outputs, arguments = run
    path = outputs / "entropic_amazon.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    records = [json.loads(line) for line in lines]
    assert {(record["split"], record["rate"]) for record in records} == {(k, f) for k in range(2) for f in (0.0, 0.5)}
    path.write_text("\n".join(lines)[:-20])
    with threadpool_limits(1):
        again = main(arguments)
    for rate in (0.0, 0.5):
        np.testing.assert_array_equal(again["full", "kitchen"][rate], results["full", "kitchen"][rate])
    assert path.read_text().splitlines()[-1] == lines[-1]
    monkeypatch.setattr("examples.entropic.amazon.errors_of_split", None)
    main(arguments)  # there is nothing left to compute
    with pytest.raises(TypeError, match="not callable"):
        main([*arguments, "--values", "5"])
