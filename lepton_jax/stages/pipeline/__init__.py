"""Stages on devices of their own: pipelines for training and for inference."""

from lepton_jax.stages.pipeline.inference import pipeline
from lepton_jax.stages.pipeline.schedules import GPipe, OneFOneB, Schedule, kept_bytes
from lepton_jax.stages.pipeline.step import microbatches, pipeline_step

__all__ = ["GPipe", "OneFOneB", "Schedule", "kept_bytes", "microbatches", "pipeline", "pipeline_step"]
