"""Compressed sums of gradients over devices, in place of `lepton_jax.precision.AllReduce`; what is left out is sent later."""

from lepton_jax.training.reduce.base import EachDevice, ReduceState
from lepton_jax.training.reduce.int8 import Int8Reduce
from lepton_jax.training.reduce.power_sgd import PowerSgd
from lepton_jax.training.reduce.top_k import TopK

__all__ = ["EachDevice", "Int8Reduce", "PowerSgd", "ReduceState", "TopK"]
