"""What `fast_lowering` does to a function, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.tables import table as as_table
from lepton_jax.graph.lowering.apply import is_ours, traced_call
from lepton_jax.graph.lowering.choose import DIRECT, choose, rules_of, site_of
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.rules import DEFAULT
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.lowering.table import Table, forms_of
from lepton_jax.graph.trace import Equation, Traced, equations_of


@checked
@dataclass(frozen=True, kw_only=True)
class Lowered:
    """One operation, and what becomes of it.

    Attributes:
      name: the operation's.
      site: its primitive, parameters and shapes.
      form: the name of the rule that does it, or "direct".
      why: in words.
      gain: what is expected, in words; empty for none.

    Example:
      >>> import flax.linen as nn, jax.numpy as jnp
      >>> [pool] = explain_lowering(lambda x: nn.max_pool(x, (2, 2), (2, 2)), jnp.ones((1, 4, 4, 1))).operations
      >>> pool.form, pool.gain
      ('max pool', '1.5x-2.5x')
    """

    name: str
    site: Site
    form: str
    why: str
    gain: str


@checked
@dataclass(frozen=True)
class Explanation:
    """All convolutions and pools of a function; printed, a table.

    Example:
      >>> str(Explanation(()))
      'There is no convolution and no pool: nothing to do otherwise.'
    """

    operations: tuple[Lowered, ...]

    @property
    def changed(self) -> tuple[Lowered, ...]:
        """Those that are done otherwise."""
        return tuple(one for one in self.operations if one.form != DIRECT)

    def __str__(self) -> str:
        if not self.operations:
            return "There is no convolution and no pool: nothing to do otherwise."
        rows = [("operation", "shapes", "form", "gain", "why")]
        rows += [(one.name, _shapes(one.site), one.form, one.gain, one.why) for one in self.operations]
        total = f"{len(self.changed)} of {len(self.operations)} operations are done otherwise on CPU; on other devices none is."
        return as_table(rows, left=range(5)) + "\n" + total


@checked_but("rules", "table")
def explain_lowering(
    function: Callable[..., Any],
    *arguments: Any,
    rules: Sequence[Rule | str] = DEFAULT,
    table: Table | None = None,
    **keywords: Any,
) -> Explanation:
    """Say of every convolution and pool of a function whether `fast_lowering` does it otherwise, and why. Nothing is computed.

    Args:
      function: as `fast_lowering` is given it.
      *arguments: as it is called with; shapes will do.
      rules: as there.
      table: as there.
      **keywords: of the call.

    Returns:
      what can be printed: for each operation its name, shapes, form, expected gain and the reason.

    Raises:
      ValueError: for an unknown rule.
      TypeError: for what cannot be traced.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> def apply(kernel, x):
      ...     return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
      >>> print(explain_lowering(apply, jnp.ones((3, 3, 4, 8)), jnp.ones((1, 2, 2, 4))))
      operation             shapes                             form         gain      why
      conv_general_dilated  1x2x2x4 * 3x3x4x8 -> 1x2x2x8  small image  20x-150x  the kernel is larger than the image, so ...
      1 of 1 operations are done otherwise on CPU; on other devices none is.
    """
    chosen, forms = rules_of("explain_lowering", rules, DEFAULT), forms_of("explain_lowering", table)
    traced, _ = traced_call(function, arguments, keywords)
    found = []
    for eqn in operations(traced):
        site = site_of(eqn)
        if site is not None:
            rule = choose(site, chosen, forms)
            measured = " (measured)" if site.key in forms else ""
            why = _direct(site, chosen) if rule is None else rule.about
            gain, form = ("", DIRECT) if rule is None else (rule.gain, rule.name)
            found.append(Lowered(name=traced.names[eqn.path], site=site, form=form, why=why + measured, gain=gain))
    return Explanation(tuple(found))


def operations(traced: Traced) -> Iterator[Equation]:
    """Yield the operations of a graph, those inside calls and loops too, without forms that were put there before.

    Args:
      traced: the graph.
    """

    def inside(jaxpr: Any, path: Any, scope: str) -> Iterator[Equation]:
        for eqn in equations_of(jaxpr, path, scope):
            yield eqn
            for body in () if is_ours(eqn) else eqn.bodies:
                yield from inside(body.jaxpr, (*eqn.path, body.label), eqn.scope)

    yield from inside(traced.jaxpr, (), "")


def _direct(site: Site, rules: Sequence[Rule]) -> str:
    if any(rule.can(site) for rule in rules):
        return "XLA's own form is as fast at these shapes"
    return "no rule is for it"


def _shapes(site: Site) -> str:
    sizes = ["x".join(map(str, shape)) for shape in (*site.shapes, site.result)]
    return f"{' * '.join(sizes[:-1])} -> {sizes[-1]}"
