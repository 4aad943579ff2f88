"""Labels through contractions and transforms: dot products, convolutions, Fourier transforms."""

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


def ragged_dot(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """As `dot_general`; the groups, and the axis whose runs of rows belong to them, are fixed."""
    lhs, rhs, *sizes = ins
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    labels.fix_all(sizes, eqn.primitive)
    for axis in numbers.lhs_ragged_dimensions:
        labels.fix(lhs.atoms[axis], f"the groups of {eqn.primitive}")
    for axis in numbers.rhs_group_dimensions:
        labels.fix(rhs.atoms[axis], f"the groups of {eqn.primitive}")
    for left, right in zip(lhs_contract, rhs_contract):
        _contract(labels, lhs, left, rhs, right, eqn.primitive)
    batch = []
    for left, right in zip(lhs_batch, rhs_batch):
        labels.pair(lhs.atoms[left], rhs.atoms[right], eqn.primitive)
        batch.append((labels.best([lhs.atoms[left], rhs.atoms[right]]), lhs.zero[left] or rhs.zero[right]))
    rest = lhs.without((*lhs_contract, *lhs_batch)).parts
    rest += rhs.without((*rhs_contract, *rhs_batch, *numbers.rhs_group_dimensions)).parts
    groups = [labels.still(len(sizes[0].atoms[-1]))] if set(numbers.lhs_ragged_dimensions) & set(lhs_contract) else []
    return [Axes.of([*groups, *batch, *rest])]


def fft(labels: Labels, eqn: Equation, ins: Sequence[Axes]) -> list[Axes]:
    """Fix the last axes, which are transformed; the others pass."""
    [value] = ins
    start = len(value.atoms) - len(eqn.params["fft_lengths"])
    for atoms in value.atoms[start:]:
        labels.fix(atoms, "fft")
    shape = lengths(eqn.out_avals[0].shape)
    return [Axes.of([*value.parts[:start], *map(labels.still, shape[start:])])]


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
