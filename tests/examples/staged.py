"""Tests that need the folder of data."""

import os

import pytest

from examples.common.data import VARIABLE

staged = pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"the environment variable {VARIABLE} is not set")
