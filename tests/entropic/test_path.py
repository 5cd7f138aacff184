"""A grid of entropic regressions is its models, each by itself."""

import numpy as np
import pytest
import scipy.sparse as sp

from pyro_dropout.entropic import EntropicLinearRegression, regression_path
from tests.support.scenarios import linear_data as data


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("p", [5, 60])
def test_a_path_is_its_models(p, convert):
    x, y = data(30, p)
    rates, shrinkages = [0.0, 0.3], [0.1, 1.0, 10.0]
    path = regression_path(convert(x), y, rates, shrinkages, b0=0.5)
    for row, rate in zip(path, rates, strict=True):
        for model, shrinkage in zip(row, shrinkages, strict=True):
            alone = EntropicLinearRegression(rate, shrinkage, b0=0.5).fit(convert(x), y)
            np.testing.assert_allclose(model.coef_, alone.coef_)
            assert model.log_normalizer() == pytest.approx(alone.log_normalizer())
    before = path[1][1].coef_.copy()
    path[1][0].partial_fit(convert(x), y)
    path[1][1].partial_fit(convert(x[:1]), y[:1])
    expected = EntropicLinearRegression(0.3, 1.0, b0=0.5).fit(convert(np.concatenate([x, x[:1]])), [*y, y[0]])
    np.testing.assert_allclose(path[1][1].coef_, expected.coef_, atol=1e-12)
    assert not np.allclose(before, path[1][1].coef_)
