"""Axis labels: which indices of which axes are removed together."""

from lepton_jax.graph.axes.analyse import Analysis, analyse, analyse_traced
from lepton_jax.graph.axes.labels import FIXED, Axes, Labels

__all__ = ["FIXED", "Analysis", "Axes", "Labels", "analyse", "analyse_traced"]
