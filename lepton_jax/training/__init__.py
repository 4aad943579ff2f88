"""Training: state, step, loop, evaluation, metrics, checkpoints, data parallelism."""

from lepton_jax.core.extras import import_extra
from lepton_jax.core.finite import not_finite
from lepton_jax.core.typing import ModelApply
from lepton_jax.training import multihost, stacked
from lepton_jax.training.arrays import from_arrays, to_arrays
from lepton_jax.training.checkpoint import Checkpoints, fingerprint
from lepton_jax.training.classification import classification_loss, cross_entropy, linen_apply
from lepton_jax.training.collectives import Collective, collectives, sent_table
from lepton_jax.training.eight_bit import eight_bit
from lepton_jax.training.evaluate import Evaluate, make_evaluate
from lepton_jax.training.gathered import gathered
from lepton_jax.training.interrupt import Terminated
from lepton_jax.training.language import next_token_entropy, next_token_loss, windows
from lepton_jax.training.loop import FitSettings, fit
from lepton_jax.training.metrics import MetricsWriter, read_metrics
from lepton_jax.training.nnx_models import NnxLossFn, make_nnx_step, nnx_apply, nnx_begin
from lepton_jax.training.placement import Placement
from lepton_jax.training.presets import fsdp, replicated, tensor_parallel
from lepton_jax.training.reduce import Int8Reduce, PowerSgd, TopK
from lepton_jax.training.sharding import data_mesh, parallel_step, replicate, shard_step
from lepton_jax.training.source import StackedSource, batch_source
from lepton_jax.training.state import TrainState, create
from lepton_jax.training.step import LossFn, Metrics, TrainStep, make_scan_steps, make_train_step, step_function
from lepton_jax.training.writers import TensorBoardWriter, WandbWriter, Writer, Writers

__all__ = [
    "Checkpoints",
    "Collective",
    "Evaluate",
    "FitSettings",
    "Int8Reduce",
    "LossFn",
    "Metrics",
    "MetricsWriter",
    "ModelApply",
    "NnxLossFn",
    "Placement",
    "PowerSgd",
    "StackedSource",
    "TensorBoardWriter",
    "Terminated",
    "TopK",
    "TrainState",
    "TrainStep",
    "WandbWriter",
    "Writer",
    "Writers",
    "batch_source",
    "classification_loss",
    "collectives",
    "create",
    "cross_entropy",
    "data_mesh",
    "eight_bit",
    "fingerprint",
    "fit",
    "from_arrays",
    "fsdp",
    "gathered",
    "import_extra",
    "linen_apply",
    "make_evaluate",
    "make_nnx_step",
    "make_scan_steps",
    "make_train_step",
    "multihost",
    "next_token_entropy",
    "next_token_loss",
    "nnx_apply",
    "nnx_begin",
    "not_finite",
    "parallel_step",
    "read_metrics",
    "replicate",
    "replicated",
    "sent_table",
    "shard_step",
    "stacked",
    "step_function",
    "tensor_parallel",
    "to_arrays",
    "windows",
]
