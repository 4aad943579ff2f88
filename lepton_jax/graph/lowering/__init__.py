"""The fastest exact form of each operation on CPU, by rules on shapes.

A `rule.Rule` says which operations (`site.Site`) it can do, for which that pays, and how; one rule a file, all in `rules`.
`choose` asks them, `apply` puts forms in the place of operations, `explain` says what was done and why. `measure` times forms
instead, and keeps what it found in a `table`. `windows` and `filling` are what forms share.
"""

from lepton_jax.graph.lowering.apply import fast_lowering
from lepton_jax.graph.lowering.explain import Explanation, Lowered, explain_lowering
from lepton_jax.graph.lowering.measure import measure_lowerings
from lepton_jax.graph.lowering.rule import Rule
from lepton_jax.graph.lowering.rules import DEFAULT
from lepton_jax.graph.lowering.site import Site
from lepton_jax.graph.lowering.table import IgnoredTableWarning

__all__ = [
    "DEFAULT",
    "Explanation",
    "IgnoredTableWarning",
    "Lowered",
    "Rule",
    "Site",
    "explain_lowering",
    "fast_lowering",
    "measure_lowerings",
]
