"""Units in processes of their own, on this machine: frames of arrays, a server, its clients."""

from lepton_jax.stages.serving.apart import Apart
from lepton_jax.stages.serving.frames import PeerError, model_name
from lepton_jax.stages.serving.processes import started
from lepton_jax.stages.serving.remote import Remote, in_line
from lepton_jax.stages.serving.server import Server

__all__ = ["Apart", "PeerError", "Remote", "Server", "in_line", "model_name", "started"]
