"""How each operator is evaluated, by kind, one file a kind."""

from lepton_jax.interchange.onnx.rules import (
    activations,
    columns,
    control,
    convolutions,
    elementwise,
    indexing,
    microsoft,
    normalization,
    padding,
    pooling,
    products,
    quantized,
    recurrent,
    reductions,
    resizing,
    sampling,
    sequences,
    shapes,
    spectra,
)
from lepton_jax.interchange.onnx.site import Rule

RULES: dict[str, Rule] = {
    **elementwise.RULES,
    **activations.RULES,
    **shapes.RULES,
    **indexing.RULES,
    **padding.RULES,
    **reductions.RULES,
    **products.RULES,
    **convolutions.RULES,
    **pooling.RULES,
    **normalization.RULES,
    **resizing.RULES,
    **sampling.RULES,
    **columns.RULES,
    **spectra.RULES,
    **recurrent.RULES,
    **control.RULES,
    **sequences.RULES,
    **quantized.RULES,
    **microsoft.RULES,
}

__all__ = ["RULES"]
