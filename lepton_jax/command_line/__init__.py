"""The command line ``lepton``: look into files, verify, unpack, compare, convert and run them."""

from lepton_jax.command_line.main import main

__all__ = ["main"]
