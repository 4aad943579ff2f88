"""Automatic compression: what each layer can bear, and the best recipe within a budget."""

from lepton_jax.tuning.allocate import allocate
from lepton_jax.tuning.budget import Budget
from lepton_jax.tuning.layer import Layer
from lepton_jax.tuning.machines import MACHINES, Machine
from lepton_jax.tuning.measure import measure
from lepton_jax.tuning.memory_plan import MemoryPlan, compiled_step, plan_memory
from lepton_jax.tuning.options import Bits, Channels, Choice, NofM, Option, Rank, Sparsity
from lepton_jax.tuning.recipe import Recipe
from lepton_jax.tuning.refine import Refined, refine
from lepton_jax.tuning.search import Searched, search
from lepton_jax.tuning.space import Range
from lepton_jax.tuning.table import Cell, Table
from lepton_jax.tuning.tune import Tuned, tune

__all__ = [
    "MACHINES",
    "Bits",
    "Budget",
    "Cell",
    "Channels",
    "Choice",
    "Layer",
    "Machine",
    "MemoryPlan",
    "NofM",
    "Option",
    "Range",
    "Rank",
    "Recipe",
    "Refined",
    "Searched",
    "Sparsity",
    "Table",
    "Tuned",
    "allocate",
    "compiled_step",
    "measure",
    "plan_memory",
    "refine",
    "search",
    "tune",
]
