"""How much a choice of channels removes: of multiply-accumulates, of parameters."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lepton_jax.graph.axes import FIXED, Analysis
from lepton_jax.graph.primitives import RAGGED
from lepton_jax.graph.trace import Traced

_PARAMS = "params/"


@dataclass(frozen=True, kw_only=True, eq=False)
class Amount:
    """A sum of products of axis lengths: ``sum_t factor_t * prod_a (indices of axis a that are left)``."""

    terms: tuple[tuple[int, tuple[np.ndarray, ...]], ...]
    """(product of the fixed axes' lengths, the classes of the indices of every other axis)"""

    def total(self, removed: np.ndarray) -> int:
        """The amount that is left, for bool[classes] removed."""
        return sum(factor * int(np.prod([np.count_nonzero(~removed[c]) for c in axes])) for factor, axes in self.terms)


def parameters(traced: Traced, analysis: Analysis) -> Amount:
    """The number of parameters: of the collection 'params', if there is one, else of all variables."""
    named = any(path.startswith(_PARAMS) for path in traced.variables)
    terms = [
        _term(analysis, 1, axes.atoms)
        for path, axes in zip(traced.variables, analysis.inputs)
        if not named or path.startswith(_PARAMS)
    ]
    return Amount(terms=tuple(terms))


def macs(analysis: Analysis) -> Amount:
    """The multiply-accumulates of all dot products and convolutions; the body of a while loop counts once."""
    terms = []
    for record in analysis.records.values():
        eqn = record.eqn
        if eqn.primitive == "dot_general":
            operand, contracted = record.ins[0], eqn.params["dimension_numbers"][0][0]
        elif eqn.primitive == "conv_general_dilated":
            operand, contracted = record.ins[1], eqn.params["dimension_numbers"].rhs_spec[1:]
        elif eqn.primitive in RAGGED:
            operand = record.ins[0]
            contracted = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][0]
        else:
            continue
        terms.append(_term(analysis, eqn.times or 1, (*record.outs[0].atoms, *(operand.atoms[a] for a in contracted))))
    return Amount(terms=tuple(terms))


def _term(analysis: Analysis, factor: int, axes: Iterable[np.ndarray]) -> tuple[int, tuple[np.ndarray, ...]]:
    free = []
    for atoms in axes:
        classes = analysis.classes[atoms]
        if (classes == FIXED).all():
            factor *= len(atoms)
        else:
            free.append(classes)
    return factor, tuple(free)
