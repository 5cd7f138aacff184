"""The data that guides are tried on."""

import pytest
import torch

from tests.support.scenarios import regression_data


@pytest.fixture
def data():
    return regression_data(20, dtype=torch.float32)
