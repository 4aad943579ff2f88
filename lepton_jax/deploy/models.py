"""What is deployed: a pure function, its variables and example inputs, of whichever class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.artifact.artifact import Artifact
from lepton_jax.artifact.inputs import Axes, guessed, named
from lepton_jax.artifact.program import FixedBatchWarning
from lepton_jax.artifact.slices import with_slices
from lepton_jax.core.errors import one_line
from lepton_jax.core.kinds import described
from lepton_jax.core.packed import is_packed
from lepton_jax.core.typing import PyTree
from lepton_jax.deploy.program import expanded
from lepton_jax.graph.cost import dense_shapes
from lepton_jax.graph.fold import fold_batch_norm
from lepton_jax.graph.trace import Traced, trace


class Deployable(NamedTuple):
    """A model as it is deployed.

    Args:
      apply: pure function ``apply(variables, *inputs)``, without programs of files in it.
      variables: its variables, any leaf of which may be packed.
      example: inputs, or their shapes and dtypes.
    """

    apply: Callable[..., Any]
    variables: PyTree
    example: tuple[Any, ...]


def deployable(name: str, model: Any, example: Sequence[Any] = ()) -> Deployable:
    """Return a model, or what a `.lepton` file holds, as it is deployed.

    Args:
      name: of the function that asks.
      model: a `lepton_jax.Model`, or an `Artifact`.
      example: inputs, if the model has none.

    Raises:
      TypeError: for anything else.
      ValueError: if there are no example inputs.

    Example:
      >>> deployable("save", 3)
      Traceback (most recent call last):
      ...
      TypeError: save: model must be a Model, Model(apply, variables, (x,)), or a loaded .lepton file; got 3 (int).
    """
    if isinstance(model, Artifact):
        found = Deployable(model.apply, model.packed, _single(model))
    elif all(hasattr(model, name) for name in ("apply", "variables", "example")):
        found = Deployable(model.apply, model.variables, model.example)
    else:
        got = described(model)
        raise TypeError(f"{name}: model must be a Model, Model(apply, variables, (x,)), or a loaded .lepton file; got {got}.")
    found = _without_keys(found._replace(apply=expanded(found.apply), example=tuple(example) or found.example))
    if not found.example:
        raise ValueError(
            f"{name}: needs example inputs, of whose shapes and dtypes the file will be: Model(apply, variables, (x,))."
        )
    return found


def _single(model: Artifact) -> tuple[Any, ...]:
    """Shapes of one example, where the batch of a file's program may have any length."""
    leaves, tree = jax.tree.flatten(model.example_inputs)
    if model.constraints:
        return model.example_inputs
    one = [jax.ShapeDtypeStruct((1, *x.shape[1:]) if 0 in names else x.shape, x.dtype) for x, names in zip(leaves, model.axes)]
    return jax.tree.unflatten(tree, one)


def _without_keys(model: Deployable) -> Deployable:
    """The same with random keys, which evaluation does not draw from, no variables but constants."""
    leaves, tree = jax.tree.flatten(model.variables, is_leaf=is_packed)
    keys = {place: leaf for place, leaf in enumerate(leaves) if _is_key(leaf)}
    if not keys:
        return model

    @wraps(model.apply)
    def apply(arrays: Any, *inputs: Any) -> Any:
        left = iter(arrays)
        whole = [keys[place] if place in keys else next(left) for place in range(len(leaves))]
        return model.apply(jax.tree.unflatten(tree, whole), *inputs)

    return Deployable(apply, [leaf for place, leaf in enumerate(leaves) if place not in keys], model.example)


def _is_key(leaf: Any) -> bool:
    return not is_packed(leaf) and jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def folded(model: Deployable) -> Deployable:
    """Return a model with batch norms, and all that depends on variables alone, folded into new variables.

    As it was, if leaves are packed: their numbers are to stay; or if it cannot be folded, which only costs time.
    """
    leaves = jax.tree.leaves(model.variables, is_leaf=is_packed)
    if any(map(is_packed, leaves)):
        return model
    try:
        apply, variables = fold_batch_norm(model.apply, model.variables, *shapes_of(model.example))
    except (ValueError, TypeError, NotImplementedError):
        return model
    return Deployable(apply, variables, model.example)


def shapes_of(inputs: tuple[Any, ...]) -> Any:
    """Shapes and dtypes of inputs."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(dtype))

    return jax.tree.map(one, inputs)


def traced_for(
    models: Sequence[Deployable], axes: Axes | None = None, constraints: Sequence[str] = ()
) -> tuple[Deployable, Traced]:
    """Trace a model for inputs of which named axes have any length.

    Args:
      models: what is deployed, in several forms: the first that can be traced is taken.
      axes: which axes, as in `lepton_jax.save`; None: leading axes where the model can be traced so.
      constraints: on the lengths.

    Raises:
      ValueError, TypeError: if it cannot be traced.
    """
    static = shapes_of(models[-1].example)
    shapes = [*guessed(static), static] if axes is None else [named(static, axes, constraints)[0]]
    problem: Exception | None = None
    for some in shapes:
        for model in models:
            sliced = wraps(model.apply)(with_slices(model.apply))
            try:
                traced = trace(sliced, dense_shapes(model.variables), *some)
            except Exception as error:  # whatever the traced operations raise
                problem = error
                continue
            if axes is None and len(shapes) > 1 and some is static:
                _warn(problem)
            return model, traced
    assert problem is not None
    raise problem


def _warn(problem: Exception | None) -> None:
    warnings.warn(
        "the file takes inputs of the examples' shapes only, since the model could not be traced for a batch of any length "
        f"({one_line(problem)}). Write it for any x.shape[0], or, if that is meant, save with axes={{}}.",
        FixedBatchWarning,
        stacklevel=5,
    )
