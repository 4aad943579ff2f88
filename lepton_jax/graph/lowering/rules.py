"""All rules, in the order in which they are asked."""

from lepton_jax.graph.lowering import (
    average_pool,
    depthwise,
    depthwise_kernel,
    max_pool,
    max_pool_gradient,
    one_position,
    small_image,
)
from lepton_jax.graph.lowering.rule import Rule

DEFAULT: tuple[Rule, ...] = (
    one_position.RULE,
    small_image.RULE,
    depthwise.RULE,
    depthwise_kernel.RULE,
    max_pool_gradient.RULE,
    max_pool.RULE,
    average_pool.RULE,
)
"""The rules of `fast_lowering`."""
