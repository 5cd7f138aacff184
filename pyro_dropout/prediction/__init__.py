"""Prediction: what a posterior says of data, by many draws in bounded memory.

``DropoutPredictive`` (``predictive``) is Pyro's ``Predictive`` for many draws over many data. Its draws are functions:
one mask for all data, which can be kept, indexed and called again. It looks at the model once with two and once with
three rows of data to see what grows with them, takes draws and data in parts that fit into a number of bytes
(``_parts``, where data do not know each other: ``_independence``), reads values, moments or log-densities at the sites
of each part (``_reads``), and keeps all of them, or only what they add up to (``_accumulators``). ``draws`` draws from
a guide in a plate left of the model's own; the export to ArviZ has its draws from there too.
"""

from pyro_dropout.prediction.predictive import DropoutPredictive

__all__ = ["DropoutPredictive"]
