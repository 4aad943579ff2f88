"""Entropy coders: masks, symbols and numbers to bytes and back."""

from lepton_jax.coding.streams import CATEGORIES, Reader, Writer

__all__ = ["CATEGORIES", "Reader", "Writer"]
