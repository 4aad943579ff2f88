"""A model split into stages: planned on its graph, each a pure function with variables of its own."""

from lepton_jax.stages import edge
from lepton_jax.stages.files import SavedStages, load, save
from lepton_jax.stages.find import plan
from lepton_jax.stages.pipeline import GPipe, OneFOneB, pipeline, pipeline_step
from lepton_jax.stages.plan import Plan
from lepton_jax.stages.seconds import stage_seconds
from lepton_jax.stages.serving import Apart, PeerError, Remote, Server
from lepton_jax.stages.verify import Verified, join, verify

__all__ = [
    "Apart",
    "GPipe",
    "OneFOneB",
    "PeerError",
    "Plan",
    "Remote",
    "SavedStages",
    "Server",
    "Verified",
    "edge",
    "join",
    "load",
    "pipeline",
    "pipeline_step",
    "plan",
    "save",
    "stage_seconds",
    "verify",
]
