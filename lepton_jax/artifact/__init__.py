"""One file for a compressed model: program, entropy-coded weights, manifest, and an account of every byte."""

from lepton_jax.artifact.account import Account, TensorAccount, account
from lepton_jax.artifact.artifact import Artifact, load, save
from lepton_jax.artifact.program import FixedBatchWarning
from lepton_jax.artifact.sizes import TensorSizes
from lepton_jax.artifact.tensors import tensor_bytes
from lepton_jax.core.errors import ArtifactError

__all__ = [
    "Account",
    "Artifact",
    "ArtifactError",
    "FixedBatchWarning",
    "TensorAccount",
    "TensorSizes",
    "account",
    "load",
    "save",
    "tensor_bytes",
]
