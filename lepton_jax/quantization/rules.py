"""Rules: which operand of which operation is quantized, and how."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.paths import matches
from lepton_jax.core.presets import preset
from lepton_jax.core.typing import Path
from lepton_jax.formats import Format, Uniform
from lepton_jax.graph.matching import fits, patterns_of
from lepton_jax.graph.primitives import PRODUCTS, RAGGED
from lepton_jax.graph.trace import Equation
from lepton_jax.quantization.quantizers import ActivationQuantizer, Dynamic

Argument = Literal["activation", "weight", "lhs", "rhs", "any"]
OPERANDS = {**dict.fromkeys(PRODUCTS | RAGGED, ("lhs", "rhs")), "gather": ("lhs",)}
"""The operations with operands to quantize, and what these are called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operand:
    """An operand of a dot, a convolution or a gather, and what was decided about it.

    Attributes:
      operation: the operation's name.
      primitive: what it does.
      argument: "lhs" or "rhs".
      kind: "activation" or "weight".
      leaves: the parameters that a weight is computed from.
      shape: as traced; of one step in a loop.
      loops: the lengths of the scans around it, from outside in; of a `shard_map`, the number of devices.
      devices: which of the loops are a `shard_map`, whose devices share one site.
      rule: the place of the rule that decided, or None.
      quantizer: what it is rounded by, or None.
      axes: the axes that one range spans; None: as the format says.
      reason: why it is left alone; empty if it is not.

    Example:
      >>> from lepton_jax.quantization import Dynamic, explain
      >>> [left, right] = explain(lambda w, x: x @ w, Rule(quantizer=Dynamic()), jnp.eye(2), jnp.ones((1, 2)))
      >>> left.kind, left.rule, right.kind, right.reason
      ('activation', 0, 'weight', 'no rule matches')
    """

    operation: str
    primitive: str
    argument: str
    kind: str
    leaves: tuple[Path, ...]
    shape: tuple[int, ...]
    loops: tuple[int, ...]
    devices: tuple[int, ...] = ()
    rule: int | None = None
    quantizer: ActivationQuantizer | None = None
    axes: tuple[int, ...] | None = None
    reason: str = ""

    @property
    def is_gather(self) -> bool:
        """Whether rows of it are looked up: nothing is multiplied."""
        return self.primitive == "gather"

    @property
    def is_static(self) -> bool:
        """Whether it has a site."""
        return self.quantizer is not None and has_site(self.quantizer)


@checked_but("quantizer", "operation", "names", "path")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Says how operands of operations are quantized; of several rules the first that matches an operand decides.

    An operand matches if it does so in everything that is said.

    Args:
      quantizer: how; None leaves the operand as it is, whatever later rules say.
      operation: glob pattern(s) over operations' names (``'Dense_0/dot_general'``), modules (``'Dense_*'``; the outermost need
        not be written) and primitives; by default dots and convolutions. ``'gather'`` is what embeddings are looked up by.
      names: names of operations, whole and exact, as `explain` and `first_and_last` give them; none: any.
      argument: "activation", which an input of the model plays a part in; "weight", which is computed from parameters alone;
        "lhs" or "rhs", the first or second; or "any".
      path: glob pattern(s) over the paths of parameters: only operations that these go into (``'*/head/kernel'``); none: any.
      free_axes: one scale for every index of the axes that the operation does not sum over, in place of the format's
        granularity: a token's, an output channel's, an example's in a convolution. Integers can be multiplied at no finer one.

    Raises:
      TypeError: for what is no quantizer or pattern.
      ValueError: for an unknown argument.

    Example:
      >>> from lepton_jax.quantization import Dynamic, Uniform
      >>> rule = Rule(operation="Dense_*", quantizer=Dynamic(Uniform(8)))
      >>> rule.operation, rule.argument
      (('Dense_*',), 'activation')
    """

    quantizer: ActivationQuantizer | None
    operation: str | Sequence[str] = ("dot_general", "conv_general_dilated", "ragged_dot*")
    names: Sequence[str] = ()
    argument: Argument = "activation"
    path: str | Sequence[str] = ()
    free_axes: bool = False

    def __post_init__(self) -> None:
        for name in ("operation", "names", "path"):
            object.__setattr__(self, name, patterns_of(f"Rule: {name}", getattr(self, name)))
        known = ("activation", "weight", "lhs", "rhs", "any")
        if self.argument not in known:
            raise ValueError(f"Rule: argument must be one of {', '.join(known)}; got {self.argument!r}.")
        quantizer = self.quantizer
        if quantizer is not None and not all(hasattr(quantizer, name) for name in ("format", "init", "quantized")):
            raise TypeError(
                f"Rule: quantizer must be one of activations, e.g. Dynamic({quantizer!r}), or None; got {quantizer!r}."
                if isinstance(quantizer, Format)
                else f"Rule: quantizer must be one of activations, e.g. Dynamic(Uniform(8)), or None; got {quantizer!r}."
            )

    def matches(self, operand: Operand, eqn: Equation, leaves: Sequence[Path], among: Sequence[Path] = ()) -> bool:
        """Whether the rule speaks of an operand.

        Args:
          operand: of the operation.
          eqn: the operation.
          leaves: the paths of all parameters that go into the operation.
          among: the paths there are; a pattern that is one of them matches that one alone.
        """
        if self.argument not in ("any", operand.argument, operand.kind):
            return False
        if self.names and operand.operation not in self.names:
            return False
        if self.path and not any(matches(pattern, leaf, None, among) for pattern in self.path for leaf in leaves):
            return False
        return any(fits(pattern, operand.operation, eqn) for pattern in self.operation)


def has_site(quantizer: ActivationQuantizer) -> bool:
    """Whether a quantizer keeps arrays for every operand: a scale, a learned step.

    Example:
      >>> from lepton_jax.quantization import Dynamic
      >>> has_site(Dynamic())
      False
    """
    bound = jax.ShapeDtypeStruct((1,), jnp.float32)
    return bool(jax.tree.leaves(jax.eval_shape(quantizer.init, bound, bound)))


PRESETS: Mapping[str, tuple[Rule, ...]] = {
    "w8a8": (Rule(quantizer=Dynamic(Uniform(8)), argument="any", free_axes=True),),
    "w4a8": (
        Rule(quantizer=Dynamic(Uniform(4)), argument="weight", free_axes=True),
        Rule(quantizer=Dynamic(Uniform(8)), argument="activation", free_axes=True),
    ),
}
"""Weights with a scale for each output channel, activations with one for each token or example, found as the model runs."""


def rules_of(rules: Rule | Sequence[Rule] | str) -> tuple[Rule, ...]:
    """Return one rule or several as a tuple, or those that a short name stands for.

    Raises:
      TypeError: for what is no rule.
      ValueError: if there are none, or for a short name that there is not.

    Example:
      >>> [rule.argument for rule in rules_of("w4a8")]
      ['weight', 'activation']
    """
    given: Any = preset("rules", rules, PRESETS)
    several = tuple(given) if isinstance(given, Iterable) else (given,)
    if not several:
        raise ValueError("rules: at least one is needed, e.g. Rule(quantizer=Dynamic(Uniform(8))).")
    for rule in several:
        if not isinstance(rule, Rule):
            raise TypeError(f"rules must be of the class Rule, e.g. Rule(quantizer=Dynamic(Uniform(8))); got {rule!r}.")
    return several
