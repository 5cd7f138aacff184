"""Every test, and every example of a docstring, starts from the same seed and an empty parameter store."""

import pyro
import pytest

pytest.register_assert_rewrite("tests.support")  # their assertions say what they found


@pytest.fixture(autouse=True)
def _clean_pyro():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
    pyro.settings.set(module_local_params=False)
    pyro.enable_validation(True)  # which torch.compile switches off, for all that follows
