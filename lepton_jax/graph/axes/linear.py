"""Labels through contractions: dot products and convolutions."""

from collections.abc import Sequence

from lepton_jax.graph.axes.labels import Axes, Labels, lengths
from lepton_jax.graph.trace import Equation


def dot_general(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Unify contracted axes and batch axes; free axes pass.

    A contracted index may go only if one of its two factors is 0 when masked.
    """
    lhs, rhs = ins[:2]
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = eqn.params["dimension_numbers"]
    for left, right in zip(lhs_contract, rhs_contract):
        _contract(labels, lhs, left, rhs, right, "dot_general")
    parts = []
    for left, right in zip(lhs_batch, rhs_batch):
        labels.pair(lhs.atoms[left], rhs.atoms[right], "dot_general")
        parts.append((labels.best([lhs.atoms[left], rhs.atoms[right]]), lhs.zero[left] or rhs.zero[right]))
    parts += lhs.without((*lhs_contract, *lhs_batch)).parts + rhs.without((*rhs_contract, *rhs_batch)).parts
    return [Axes.of(parts)]


def conv(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Unify input features with the kernel's; output features pass; windows are fixed.

    In a grouped convolution the input and output features of a group go together, so that groups of equal size remain.
    """
    lhs, rhs = ins[:2]
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    (lhs_batch, lhs_feature), lhs_space = numbers.lhs_spec[:2], numbers.lhs_spec[2:]
    (rhs_out, rhs_in), rhs_space = numbers.rhs_spec[:2], numbers.rhs_spec[2:]
    shape = lengths(eqn.out_avals[0].shape)
    if eqn.params["batch_group_count"] != 1:
        labels.fix_all(ins, "conv_general_dilated with batch_group_count")
        return [labels.immovable(shape)]
    for value, space in ((lhs, lhs_space), (rhs, rhs_space)):
        for axis in space:
            labels.fix(value.atoms[axis], "the window of conv_general_dilated")
    if groups == 1:
        _contract(labels, lhs, lhs_feature, rhs, rhs_in, "conv_general_dilated")
    else:
        labels.fix(rhs.atoms[rhs_in], "the inputs of one group of conv_general_dilated")
        first = []
        for atoms in (lhs.atoms[lhs_feature], rhs.atoms[rhs_out]):
            by_group = atoms.reshape(groups, -1)
            for member in by_group.T[1:]:
                labels.pair(by_group[:, 0], member, "a group of conv_general_dilated")
            first.append(by_group[:, 0])
        labels.pair(first[0], first[1], "a group of conv_general_dilated")
    parts = list(map(labels.still, shape))
    out_batch, out_feature = numbers.out_spec[:2]
    parts[out_batch], parts[out_feature] = lhs.parts[lhs_batch], rhs.parts[rhs_out]
    return [Axes.of(parts)]


def _contract(labels: Labels, lhs: Axes, left: int, rhs: Axes, right: int, name: str) -> None:
    labels.pair(lhs.atoms[left], rhs.atoms[right], name)
    if not (lhs.zero[left] or rhs.zero[right]):
        labels.fix(lhs.atoms[left], f"{name} sums over channels that are not 0 when masked")
