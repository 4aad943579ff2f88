"""Packed leaves: compressed parameters as typed pytree nodes, one class a file.

A file says all that is particular to its leaf: shape and dtype, `unpack`, how it is stored and read back, the native form in
which it runs, and what it costs. Every file here is imported, so that a new leaf is found by files, accounts and the graph.
"""

import importlib
import pkgutil

from lepton_jax.coding.bit_packing import pack_bits, unpack_bits
from lepton_jax.core.packed import Coded, Composite, Packed, is_coded, is_packed, register_packed, unpack, unpack_coded
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.block_sparse import BlockSparse
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.cp import CP
from lepton_jax.leaves.factors import Factors
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.quantize import dequantize, quantize
from lepton_jax.leaves.ready import Ready, ready
from lepton_jax.leaves.rounding import calibrated, fake, from_integers, to_integers
from lepton_jax.leaves.separable import Separable
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.leaves.tensor_train import TensorTrain
from lepton_jax.leaves.tensor_train_matrix import TensorTrainMatrix
from lepton_jax.leaves.tucker import Tucker

__all__ = [
    "CP",
    "Adapted",
    "BlockSparse",
    "CodebookArray",
    "Coded",
    "Composite",
    "Factors",
    "LowRank",
    "Packed",
    "QArray",
    "Ready",
    "Separable",
    "Sparse",
    "TensorTrain",
    "TensorTrainMatrix",
    "Tucker",
    "calibrated",
    "dequantize",
    "fake",
    "from_integers",
    "is_coded",
    "is_packed",
    "pack_bits",
    "quantize",
    "ready",
    "register_packed",
    "to_integers",
    "unpack",
    "unpack_bits",
    "unpack_coded",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
