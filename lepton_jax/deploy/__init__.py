"""Models as files that other engines run, on their own and from other languages."""

from lepton_jax.deploy.engine import runner
from lepton_jax.deploy.folder import write_folder
from lepton_jax.deploy.gate import Gate, gate
from lepton_jax.deploy.place import Placed, place
from lepton_jax.deploy.save import save
from lepton_jax.deploy.verify import Verification, verify

__all__ = ["Gate", "Placed", "Verification", "gate", "place", "runner", "save", "verify", "write_folder"]
