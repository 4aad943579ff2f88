"""Whole ways from a trained model to a small file, made of the calls of the other packages; each returns a table."""

from lepton_jax.recipes.language_model import LanguageModels, QuantizedModel, quantize_lm

__all__ = ["LanguageModels", "QuantizedModel", "quantize_lm"]
