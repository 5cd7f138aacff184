"""Predictions of files of rows: both engines find what the saved fit predicts, of every row, once."""

import numpy as np
import pytest
import torch

from examples.common.arguments import settle
from pyro_dropout import DropoutPredictive, load_checkpoint
from pyro_dropout.metrics import predictive_moments

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pytest.importorskip("psutil", reason="psutil is not installed")

from examples.scale import predict

QUICK = ["--quick", "--rows", "1234", "--batch", "100", "--outputs"]


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def rows_of(folder):
    found = list(predict.RowGroups(folder))
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def test_rows_come_in_batches_and_are_predicted_in_order(tmp_path, capsys):
    found = predict.main([*QUICK, str(tmp_path), "--engine", "torch"])["torch"]
    rows, predicted = rows_of(tmp_path / "rows-1234-by-100"), rows_of(found.folder)
    assert np.array_equal(rows["row"], np.arange(1234))
    assert np.array_equal(predicted["row"], rows["row"])
    sizes = [len(batch["row"]) for batch in predict.RowGroups(tmp_path / "rows-1234-by-100")]
    assert sizes == [100] * 12 + [34]
    # All rows at once, from draws of the distribution's own parameters.
    settle(0)
    model, guide = predict.network()
    load_checkpoint(tmp_path / "fit.pt", guide=guide)
    x = torch.from_numpy(np.stack([rows[f"x{i}"] for i in range(predict.FEATURES)], 1))
    outputs = DropoutPredictive(model.net, guide=guide, num_samples=10, return_sites=["_RETURN"], seed=0)(x)["_RETURN"]
    moments = predictive_moments(outputs[..., 0], (-outputs[..., 1]).exp())
    np.testing.assert_allclose(predicted["mean"], moments.mean, atol=1e-5)
    np.testing.assert_allclose(predicted["epistemic_sd"], moments.epistemic.sqrt(), atol=1e-5)
    np.testing.assert_allclose(predicted["aleatoric_sd"], moments.aleatoric.sqrt(), atol=1e-5)
    assert predicted["epistemic_sd"].min() > 0
    assert "torch: 1,234 rows" in capsys.readouterr().out


def test_rows_are_made_once_and_interrupted_files_anew(tmp_path):
    options = [*QUICK, str(tmp_path), "--rows", "4100", "--engine", "torch"]
    predict.main(options)
    first, second, third = sorted((tmp_path / "rows-4100-by-100").iterdir())
    before, expected = first.stat().st_mtime_ns, rows_of(third.parent)
    second.unlink()
    predict.main(options)
    assert first.stat().st_mtime_ns == before
    found = rows_of(third.parent)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert len(np.unique(found["x0"])) > 4000  # files differ


@pytest.mark.filterwarnings("ignore:`use_.*is deprecated:DeprecationWarning:ray.data.context")  # of its own defaults
def test_ray_predicts_what_one_process_does(tmp_path, capsys):
    pytest.importorskip("ray", reason="ray is not installed")
    found = predict.main([*QUICK, str(tmp_path)])
    one, other = (rows_of(found[name].folder) for name in ("torch", "ray"))
    order = np.argsort(other["row"])
    assert np.array_equal(other["row"][order], one["row"])
    for name in predict.RESULTS:
        np.testing.assert_allclose(other[name][order], one[name], rtol=1e-5, atol=1e-6)
    assert "largest difference between them: " in capsys.readouterr().out
    assert found["ray"].memory > found["torch"].memory > 2**26
    assert found["ray"].seconds > 0


def test_differences_are_found_in_any_order(tmp_path):
    def written(name, rows, values):
        (tmp_path / name).mkdir()
        columns = {"row": rows, **{n: np.asarray(values, np.float32) for n in predict.RESULTS}}
        predict.pq.write_table(predict.pa.table(columns), tmp_path / name / "a.parquet")
        return predict.Found(tmp_path / name, 1.0, 1)

    one, other = written("one", [0, 1, 2], [1, 2, 3]), written("other", [2, 0, 1], [3, 1, 2.5])
    short, gap = written("short", [0, 1], [1, 2]), written("gap", [0, 1, 1], [1, 2, 2])
    assert predict.difference({"one": one, "other": other}, 3) == 0.5
    with pytest.raises(ValueError, match="must have 3 rows, but found 2"):
        predict.difference({"one": one, "short": short}, 3)
    assert np.isnan(predict.difference({"gap": gap, "one": one}, 3))
