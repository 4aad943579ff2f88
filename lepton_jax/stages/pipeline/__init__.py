"""Stages on devices of their own: pipelines for training and for inference."""

from lepton_jax.stages.pipeline.inference import pipeline
from lepton_jax.stages.pipeline.schedules import GPipe, OneFOneB, Schedule, kept_bytes
from lepton_jax.stages.pipeline.step import microbatches, pipeline_step
from lepton_jax.stages.pipeline.verify import LeafGradient, VerifiedGradients, verify_gradients

__all__ = [
    "GPipe",
    "LeafGradient",
    "OneFOneB",
    "Schedule",
    "VerifiedGradients",
    "kept_bytes",
    "microbatches",
    "pipeline",
    "pipeline_step",
    "verify_gradients",
]
