"""lepton_jax: make any JAX model smaller and faster, and prove it."""

from lepton_jax.artifact import Account, Artifact, ArtifactError, account, load, save
from lepton_jax.lowrank import low_rank
from lepton_jax.packed import unpack
from lepton_jax.precision import cast
from lepton_jax.pruning import prune
from lepton_jax.quantization import fake_quant
from lepton_jax.simple import Model, compress_model, distill_model, load_model, prune_model, quantize_model, save_model
from lepton_jax.transform import Transform, chain, freeze, identity, pack

__all__ = [
    "Account",
    "Artifact",
    "ArtifactError",
    "Model",
    "Transform",
    "account",
    "cast",
    "chain",
    "compress_model",
    "distill_model",
    "fake_quant",
    "freeze",
    "identity",
    "load",
    "load_model",
    "low_rank",
    "pack",
    "prune",
    "prune_model",
    "quantize_model",
    "save",
    "save_model",
    "unpack",
]
