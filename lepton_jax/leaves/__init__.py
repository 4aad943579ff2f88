"""Packed leaves: compressed parameters as typed pytree nodes, one class a file."""

from lepton_jax.core.packed import Coded, Packed, is_coded, is_packed, register_packed, unpack, unpack_coded
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.bits import pack_bits, unpack_bits
from lepton_jax.leaves.block_sparse import BlockSparse
from lepton_jax.leaves.codebook import CodebookArray
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.networks import CP, Factors, Separable, TensorTrain, TensorTrainMatrix, Tucker
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.sparse import Sparse

__all__ = [
    "CP",
    "Adapted",
    "BlockSparse",
    "CodebookArray",
    "Coded",
    "Factors",
    "LowRank",
    "Packed",
    "QArray",
    "Separable",
    "Sparse",
    "TensorTrain",
    "TensorTrainMatrix",
    "Tucker",
    "is_coded",
    "is_packed",
    "pack_bits",
    "register_packed",
    "unpack",
    "unpack_bits",
    "unpack_coded",
]
