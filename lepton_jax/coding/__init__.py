"""Entropy coders: masks, symbols and numbers to bytes and back."""

from lepton_jax.coding.streams import CATEGORIES

__all__ = ["CATEGORIES"]
