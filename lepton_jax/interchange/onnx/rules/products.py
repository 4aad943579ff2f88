"""Products of matrices."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.rules.elementwise import aligned
from lepton_jax.interchange.onnx.site import Rule, Site


def matmul(site: Site, a: Any, b: Any) -> Any:
    """Products of matrices, or of stacks of them."""
    if min(a.ndim, b.ndim) >= 2 and a.ndim != b.ndim and b.ndim != 2:
        a, b = aligned(site, a, b)
    return jnp.matmul(a, b)


def gemm(site: Site, a: Any, b: Any, c: Any = None) -> Any:
    """``alpha A B + beta C``, either matrix transposed."""
    a = a.T if site.get("transA", 0) else a
    b = b.T if site.get("transB", 0) and not site.node.stored else b
    y = jnp.matmul(a, b)
    y = scaled(y, site.get("alpha", 1.0))
    if c is None:
        return y
    y, c = aligned(site, y, scaled(c, site.get("beta", 1.0)))
    return y + c


def scaled(x: Any, by: float) -> Any:
    """A value times a number, which may be 1."""
    return x if by == 1 else x * np.asarray(by, x.dtype)


def einsum(site: Site, *values: Any) -> Any:
    """A sum of products by its equation."""
    return jnp.einsum(site.get("equation"), *values)


def determinant(site: Site, x: Any) -> Any:
    """Of matrices."""
    return jnp.linalg.det(x)


RULES: dict[str, Rule] = {
    "Det": Rule(determinant),
    "Einsum": Rule(einsum),
    "Gemm": Rule(gemm),
    "MatMul": Rule(matmul),
}
