"""How each operation is written, by kind, one file a kind."""

from lepton_jax.deploy.to_onnx.rules.elementwise import ELEMENTWISE, Rule
from lepton_jax.deploy.to_onnx.rules.indexing import INDEXING
from lepton_jax.deploy.to_onnx.rules.loops import LOOPS
from lepton_jax.deploy.to_onnx.rules.products import PRODUCTS
from lepton_jax.deploy.to_onnx.rules.reductions import REDUCTIONS
from lepton_jax.deploy.to_onnx.rules.shapes import SHAPES
from lepton_jax.deploy.to_onnx.rules.windows import WINDOWS

RULES: dict[str, Rule] = {**ELEMENTWISE, **SHAPES, **REDUCTIONS, **PRODUCTS, **WINDOWS, **INDEXING, **LOOPS}

__all__ = ["RULES", "Rule"]
