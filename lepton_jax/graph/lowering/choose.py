"""Which rule does an operation otherwise, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lepton_jax.core.kinds import described
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.trace import Equation

OPERATIONS = frozenset({"conv_general_dilated", "reduce_window_max", "reduce_window_sum", "select_and_scatter_add"})
"""What there are rules for."""
DIRECT = "direct"
"""XLA's own form, by name."""


def site_of(eqn: Equation) -> Site | None:
    """The operation as rules see it; None for one that no rule is asked about."""
    if eqn.primitive not in OPERATIONS:
        return None
    site = Site.of(eqn)
    return site if site.is_plain else None


def choose(site: Site, rules: Sequence[Rule], table: Mapping[str, str]) -> Rule | None:
    """The form of an operation: the measured one, or that of the first rule that pays; None for XLA's own.

    Args:
      site: the operation.
      rules: in the order in which they are asked.
      table: measured forms, by `Site.key`.
    """
    measured = table.get(site.key) if table else None
    if measured is not None:
        return next((rule for rule in rules if rule.name == measured and rule.can(site)), None)
    return next((rule for rule in rules if rule.can(site) and rule.pays(site)), None)


def rules_of(name: str, rules: Sequence[Rule | str], known: Sequence[Rule]) -> tuple[Rule, ...]:
    """Return rules, some of which may be given by their names.

    Args:
      name: of the function that was given them, for errors.
      rules: as given.
      known: those that have names.

    Raises:
      ValueError: for a name that none has.
      TypeError: for what is no rule.
    """
    if isinstance(rules, str | Rule) or not isinstance(rules, Sequence):
        raise TypeError(f"{name}: rules must be a sequence of rules or of their names; got {described(rules)}.")
    found = []
    by_name = {rule.name: rule for rule in known}
    for rule in rules:
        if isinstance(rule, str):
            if rule not in by_name:
                raise ValueError(f"{name}: there is no rule {rule!r}; there are {', '.join(map(repr, by_name))}.")
            found.append(by_name[rule])
        elif isinstance(rule, Rule):
            found.append(rule)
        else:
            raise TypeError(f"{name}: a rule must be a Rule or the name of one; got {described(rule)}.")
    return tuple(found)
