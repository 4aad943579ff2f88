"""ONNX files as models, and models as the graphs that they came from.

`read` makes a `parts.Graph` of a file, `weights` finds its variables, `simplify` computes what is known, `evaluate` runs it by
the `rules` of its operators; `load` puts these together.
"""

from lepton_jax.interchange.onnx.load import from_onnx
from lepton_jax.interchange.onnx.write import to_onnx

__all__ = ["from_onnx", "to_onnx"]
