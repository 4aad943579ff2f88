"""Pruning, quantization and low rank in one call each, on a model that is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.packed import is_coded, is_packed, unpack, unpack_coded
from lepton_jax.core.presets import preset
from lepton_jax.core.transform import check_state
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.core.weight_axes import WeightAxes, axes_of
from lepton_jax.formats.presets import PRESETS, named_format
from lepton_jax.graph.roles import weights
from lepton_jax.leaves.qarray import QArray
from lepton_jax.leaves.sparse import Sparse
from lepton_jax.lowrank.method import Method, as_tuple, placed
from lepton_jax.lowrank.svd import Svd
from lepton_jax.pruning.balance import warn_if_uneven
from lepton_jax.pruning.prune import apply_mask, prune
from lepton_jax.pruning.stacked import Stacks
from lepton_jax.quantization import Codebook, Format, Uniform, fake_quant, quantize, quantize_activations
from lepton_jax.quantization.rules import rules_of
from lepton_jax.simple.model import Applied, Model, check_model


@checked_but("model")
def prune_model(
    model: Model,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    select: Select | None = None,
    **options: Any,
) -> Model:
    """Return the model with its small weights set to zero.

    With a threshold, the weights of magnitude below it; with a sparsity, that fraction of every selected leaf, the smallest. No
    leaf loses all, since that would cut the network: a sparsity keeps at least one weight, a threshold is refused.
    Packed leaves stay packed; of a low-rank leaf the factors are pruned (``kernel/u``).

    Args:
      model: any; not changed.
      sparsity: fraction removed, [0, 1).
      threshold: 0 or more, a magnitude.
      select: which leaves; by default the weights of the function, see `weights_of`.
      **options: of `lepton_jax.prune`, with a sparsity: ``scope="global"``, ``criterion=...``, ``structure=...``.

    Warns:
      UnevenWarning: if a threshold, or a sparsity in scope "global", leaves less than 5 % of some leaves and more than 30 % of
        others.

    Raises:
      TypeError: unless either a threshold or a sparsity is given.
      ValueError: for one out of range, a threshold that leaves nothing of a leaf, or a selector that matches nothing.

    Example:
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.array([[0.05, -3.0]])})
      >>> prune_model(model, threshold=0.1).variables["w"].tolist()
      [[0.0, -3.0]]

    Source: Han et al. 2015, "Learning both weights and connections"; without its retraining, for which see `distill_model`.
    """
    check_model("prune_model: model", model)
    if (threshold is None) == (sparsity is None):
        given = "neither" if threshold is None else "both"
        raise TypeError(f"prune_model: give either threshold=0.1 or sparsity=0.9; got {given}.")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"prune_model: threshold must be 0 or more, a magnitude; got {threshold}.")
    if threshold is not None and options:
        raise TypeError(f"prune_model: {', '.join(options)} goes with sparsity=, not with a threshold.")

    limit, select = threshold or 0.0, weights_of(model, select)

    def pruned(variables: PyTree) -> tuple[dict[Path, Any], dict[Path, Array], dict[Path, list[Array]], Any]:
        seen, leaves = unpack_coded(variables), paths.flatten(variables, is_coded)
        chosen, state = paths.select(seen, select), None
        if sparsity is not None:
            state = prune(sparsity, select=select, **options).init(seen)[1]
            masks = state.masks
        else:
            masks = {path: ~(jnp.abs(leaf) < limit) for path, leaf in chosen.items()}  # a NaN is kept, to be seen
        stacks = Stacks(select, chosen)
        largest = {p: [jnp.max(jnp.abs(one), initial=0) for one in stacks.split(p, leaf)] for p, leaf in chosen.items()}
        return {path: apply_mask(leaves[path], mask) for path, mask in masks.items()}, masks, largest, state

    leaves, masks, largest, state = _compiled(pruned, model.variables)
    check_state(state)  # what `init` could not raise while it was compiled
    if threshold is None:
        if options.get("scope") == "global":
            warn_if_uneven("prune_model", masks)
        return _changed(model, leaves, f"prune(sparsity={sparsity:g})", tuple(leaves))
    heading = f"prune_model: threshold={threshold:g} would leave nothing of some leaves; lower it, or deselect them"
    with collect(heading) as problems:
        for path, each in largest.items():
            below = [float(one) for one in each if 0 < one < limit]
            which = "" if len(each) == 1 else f" in {len(below)} of the {len(each)} weights that it stacks"
            problems.extend([f"{path}: its largest magnitude is {max(below):.4g}{which}"] if below else [])
    warn_if_uneven("prune_model", masks)
    return _changed(model, leaves, f"prune(threshold={threshold:g})", tuple(leaves))


_WEIGHTS: Mapping[str, Format] = {"w8a8": PRESETS["int8"], "w4a8": PRESETS["int4"]}
"""The format of the weights where activations are rounded too."""


@checked_but("model")
def quantize_model(
    model: Model,
    format: int | Format | Codebook | str = 8,
    *,
    select: Select | None = None,
    precision: int | Format | Codebook | str | None = None,
) -> Model:
    """Return the model with its weights in few bits.

    A number of bits is a symmetric format with one scale for each output channel, of each weight that a leaf stacks. Zero is
    exact in every format but `Binary`, so pruned weights stay pruned; `Binary` refuses them. What was quantized before is
    quantized anew; of a low-rank leaf the factors are.

    Args:
      model: any; not changed.
      format: bits, 2 to 8 or 16; or any number format, or a codebook; or a short name: "int4_g128", "nf4", and others of
        `lepton_jax.formats.presets`. "w8a8" and "w4a8" round activations to eight bits too, with ranges found as the model
        runs.
      select: which leaves; by default the weights of the function, see `weights_of`.
      precision: the older name of `format`, in place of it.

    Raises:
      ValueError: for bits out of range, a name that there is not, a selector that matches nothing, weights that are not
        finite, or leaves that the format does not fit.
      TypeError: for what is no `Model`.

    Example:
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.array([[0.0], [1.0], [-1.5]])})
      >>> packed = quantize_model(model, 2).variables["w"]
      >>> packed.qvalue.tolist(), packed.unpack().tolist()
      ([[0], [1], [-2]], [[0.0], [1.0], [-2.0]])
    """
    check_model("quantize_model: model", model)
    format = format if precision is None else precision
    named = preset("quantize_model: format", format, {**PRESETS, **_WEIGHTS})
    fmt = named if isinstance(named, (Format, Codebook)) else named_format("quantize_model: format", named)
    select = weights_of(model, select)
    transform = fake_quant(fmt, select=select)

    def quantized(variables: PyTree) -> dict[Path, Any]:
        seen = unpack_coded(variables)
        packed = transform.pack(*transform.init(seen))
        made = dict(zip(paths.flatten(seen), jax.tree.structure(seen).flatten_up_to(packed)))  # type: ignore[attr-defined]
        return {path: made[path] for path in paths.select(seen, select)}

    seen = unpack_coded(model.variables)
    check_finite("quantize_model", paths.select(seen, select))  # what a compiled function cannot see
    if isinstance(fmt, Format) and not fmt.has_zero:
        transform.init(seen)  # refuses zeros, for the same reason
    chosen = _compiled(quantized, model.variables)
    text = "codebook" if isinstance(fmt, Codebook) else fmt.name
    made = _changed(model, chosen, f"quantize({fmt.bits} bits{'' if isinstance(fmt, Uniform) else f', {text}'})")
    if not (isinstance(format, str) and format in _WEIGHTS):
        return made
    applied = (*made.applied, Applied(f"quantize_activations({format})"))
    # Weights are rounded already: once more, where they are seen dense and have a range of their own, they would move.
    rules = [dataclasses.replace(rule, argument="activation") for rule in rules_of(format) if rule.argument != "weight"]
    return dataclasses.replace(made, apply=quantize_activations(made.apply, rules), applied=applied)


@checked_but("model")
def compress_model(
    model: Model,
    rank: float | None = None,
    *,
    sparsity: float | None = None,
    format: int | Format | Codebook | str | None = None,
    select: Select | None = None,
) -> Model:
    """Return the model after those of the three techniques that are asked for, in the order in which they combine.

    Its matrices become products of thin ones (`factorize_model`), then small weights, also of the factors, zero
    (`prune_model`), then what is left is written in few bits (`quantize_model`).

    Args:
      model: any; not changed.
      rank: a whole number from 1, or a fraction of each matrix's smaller side, in (0, 1).
      sparsity: fraction removed, [0, 1).
      format: bits, or a number format, a codebook, or a short name.
      select: which leaves; by default the weights of the function, see `weights_of`.

    Raises:
      TypeError: if nothing is asked for.
      ValueError: as the three do.

    Example:
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.outer(jnp.arange(8.0), jnp.ones(6))})
      >>> small = compress_model(model, rank=1, sparsity=0.5, format=8)
      >>> small.variables["w"].u.format.bits, [step.text for step in small.applied]
      (8, ['factorize(rank=1)', 'prune(sparsity=0.5)', 'quantize(8 bits)'])
    """
    check_model("compress_model: model", model)
    if rank is None and sparsity is None and format is None:
        raise TypeError("compress_model: give at least one of rank=0.25, sparsity=0.9 and format=4; got none.")
    made = model if rank is None else factorize_model(model, rank, select=select)
    made = made if sparsity is None else prune_model(made, sparsity=sparsity, select=select)
    return made if format is None else quantize_model(made, format, select=select)


@checked_but("model")
def factorize_model(model: Model, rank: float, *, select: Select | None = None) -> Model:
    """Return the model with its matrices as products of two thin ones, by the singular value decomposition.

    A leaf of m rows and n columns becomes ``u v`` of (m + n) r numbers, where that is fewer than m n; other leaves stay as they
    are. Zeros of a pruned leaf are lost, so prune after it: the factors. A quantized leaf is factorized, and the factors are
    quantized in its format.

    Args:
      model: any; not changed.
      rank: a whole number from 1, or a fraction of each matrix's smaller side, in (0, 1).
      select: which leaves; by default the weights of the function, see `weights_of`. A convolution's kernel is read as the
        matrix of (height, width, in) by out; what a leaf stacks is factorized one by one.

    Raises:
      ValueError: for a rank out of range, one that makes no leaf smaller, or leaves that are factors or codebooks already.

    Example:
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.outer(jnp.arange(8.0), jnp.ones(6))})
      >>> leaf = factorize_model(model, rank=1).variables["w"]
      >>> leaf.u.shape, leaf.v.shape, leaf.unpack().shape
      ((8, 1), (1, 6), (8, 6))

    Source: Eckart and Young 1936; Denil et al. 2013.
    """
    check_model("factorize_model: model", model)
    if isinstance(rank, bool) or not (0 < rank < 1 or (rank >= 1 and rank == int(rank))):
        raise ValueError(f"factorize_model: rank must be a whole number from 1, or a fraction in (0, 1); got {rank!r}.")
    whole = paths.flatten(model.variables, is_packed)
    select = weights_of(model, select)
    seen = paths.select(jax.eval_shape(unpack_coded, model.variables), select)
    method = placed(Svd(), select, seen)
    usable = {path: leaf for path, leaf in seen.items() if method.at(path).refusal(leaf.shape) is None}
    most = {path: as_tuple(method.at(path).max_rank(leaf.shape))[0] for path, leaf in usable.items()}
    ranks = {path: int(rank) if rank >= 1 else max(1, round(rank * most[path])) for path in usable}
    ranks = {path: r for path, r in ranks.items() if method.at(path).parameters(seen[path].shape, r) < seen[path].size}
    if not ranks:
        raise ValueError(
            f"factorize_model: rank={rank:g} makes no selected leaf smaller: {_shapes(seen)}. Choose a lower rank."
        )
    with collect("factorize_model: some leaves cannot be factorized") as problems:
        for path in ranks:
            if path not in whole:
                problems.append(f"{path}: is a factor already; begin with the dense model, or deselect it")
            elif is_coded(whole[path]) and not isinstance(whole[path], QArray):
                problems.append(f"{path}: is a {type(whole[path]).__name__}; factorize first, then quantize, or deselect it")

    check_finite("factorize_model", {path: unpack(whole[path]) for path in ranks})

    def factorized(leaves: dict[Path, Any]) -> dict[Path, Any]:
        return {
            path: _factors(leaf, ranks[path], method.at(path), axes_of(select, path, leaf.shape))
            for path, leaf in leaves.items()
        }

    made = _compiled(factorized, {path: whole[path] for path in ranks})
    return _changed(model, made, f"factorize(rank={rank:g})")


def weights_of(model: Model, select: Select | None) -> Select:
    """Return the selector that is given; or that of what the model's function uses as weights.

    With example inputs, its graph says what each leaf is (`lepton_jax.graph.weights`): biases, scales, statistics and leaves
    that it does not read are left alone, and stacked weights, and any layout, are seen. Without, names and shapes do
    (`lepton_jax.core.paths.matrices`).

    Example:
      >>> model = Model(lambda v, x: x @ v["w"] + v["shift"], {"w": jnp.ones((2, 3)), "shift": jnp.ones((4, 3))})
      >>> with_example = dataclasses.replace(model, example=(jnp.ones((4, 2)),))
      >>> [sorted(paths.select(model.variables, weights_of(m, None))) for m in (model, with_example)]
      [['shift', 'w'], ['w']]
    """
    if select is not None:
        return select
    return weights(model.apply, model.variables, *model.example) if model.example else paths.matrices


def _compiled(function: Callable[[PyTree], Any], tree: PyTree) -> Any:
    """Run a function whole: an operation at a time, it would compile dozens of small programs for each new shape."""
    leaves = jax.tree.leaves(tree, is_leaf=is_packed)
    # What a mask leaves of a sparse leaf has a number of values that is not known while compiling.
    return function(tree) if any(isinstance(leaf, Sparse) for leaf in leaves) else jax.jit(function)(tree)


def _factors(leaf: Any, rank: int, method: Method, axes: WeightAxes | None) -> Any:
    factors: Any = method.factorize(unpack(leaf), rank)
    if not isinstance(leaf, QArray):
        return factors
    fmt: Any = leaf.format  # its axes are not the factors'
    channel = None if fmt.channel_axis is None else "out"
    fmt = dataclasses.replace(fmt, channel_axis=channel, group_axis=None).at(axes and axes.of_factors)
    u, v = (quantize(factor, fmt) for factor in (factors.u, factors.v))
    return dataclasses.replace(factors, u=u, v=v)


def _shapes(leaves: dict[Path, Any]) -> str:
    return ", ".join(f"{path} {leaf.shape}" for path, leaf in leaves.items())


def _changed(model: Model, leaves: dict[Path, PyTree], text: str, pruned: tuple[Path, ...] = ()) -> Model:
    variables = paths.replace(model.variables, leaves, is_coded)
    return dataclasses.replace(model, variables=variables, applied=(*model.applied, Applied(text, pruned)))
