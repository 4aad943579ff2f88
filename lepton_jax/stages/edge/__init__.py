"""A model shared by the edge and the cloud: where to cut it, what crosses, the two halves as files."""

from lepton_jax.stages.edge.choose import Choice, Link, Option, choose
from lepton_jax.stages.edge.cut import Cut, cut_at, load_half, save
from lepton_jax.stages.edge.picture import draw
from lepton_jax.stages.edge.profile import Profile, profile
from lepton_jax.stages.edge.serve import Client, served
from lepton_jax.stages.edge.wire import Coder, Wire, entropy_bytes, fit

__all__ = [
    "Choice",
    "Client",
    "Coder",
    "Cut",
    "Link",
    "Option",
    "Profile",
    "Wire",
    "choose",
    "cut_at",
    "draw",
    "entropy_bytes",
    "fit",
    "load_half",
    "profile",
    "save",
    "served",
]
