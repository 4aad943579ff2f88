"""A model split into stages: planned on its graph, each a pure function with variables of its own."""

from lepton_jax.stages import edge
from lepton_jax.stages.files import SavedStages, load, save
from lepton_jax.stages.find import plan
from lepton_jax.stages.pipeline import GPipe, OneFOneB, VerifiedGradients, pipeline, pipeline_step, verify_gradients
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
    "VerifiedGradients",
    "edge",
    "join",
    "load",
    "pipeline",
    "pipeline_step",
    "plan",
    "save",
    "stage_seconds",
    "verify",
    "verify_gradients",
]
