"""Models of Keras 3: in as a function and variables, and tuned weights back into the Keras model."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import collect
from lepton_jax.core.extras import import_extra
from lepton_jax.core.kinds import described
from lepton_jax.core.packed import dense
from lepton_jax.core.typing import PyTree
from lepton_jax.interchange.names import nested
from lepton_jax.simple.model import Model, check_model

_UNKNOWN = 8  # the length of an axis of the example that the model leaves open; of the first axis 1


@checked
def from_keras(model: Any, *example: Any) -> Model:
    """Make a model of a Keras 3 model on the JAX backend, in evaluation mode.

    What it trains is under "params", its other floating variables (statistics, frozen weights) under "state", by Keras's own
    names: ``params/dense/kernel``. Names that come twice are numbered. Integer variables and the seeds of random layers are
    constants. Layouts are Keras's, which are JAX's: HWIO and (in, out).

    Args:
      model: a `keras.Model`, built.
      example: inputs, one for each of the model's; by default zeros of the shapes that it declares.

    Raises:
      ImportError: if Keras is not installed, or runs on another backend; says what to do.
      TypeError: for what is no Keras model.
      ValueError: for a model that is not built, or declares no inputs while no example is given.

    Example:
      >>> from_keras({"kernel": 1.0})  # of a keras.Model: small = quantize_model(from_keras(model), 8); to_keras(small, model)
      Traceback (most recent call last):
      ...
      TypeError: from_keras: model must be a keras.Model; got a dict.
    """
    # Where Keras was never imported, nothing can be a model of it.
    keras = backend() if "keras" in sys.modules else None
    if keras is None or not isinstance(model, keras.Model):
        raise TypeError(f"from_keras: model must be a keras.Model; got {described(model)}.")
    if not model.built:
        raise ValueError("from_keras: the model has no variables yet; build it: call it once on an input.")
    structure = _structure(model)
    trained, others = names_of(model.trainable_variables), names_of(model.non_trainable_variables)
    constants = {
        name: np.asarray(variable.value)
        for name, variable in zip(others, model.non_trainable_variables)
        if not jnp.issubdtype(variable.value.dtype, jnp.floating)
    }
    takes = inspect.signature(model.call).parameters.values()
    mode = {"training": False} if any(one.name == "training" or one.kind is one.VAR_KEYWORD for one in takes) else {}
    kept = [name for name in others if name not in constants]

    def apply(variables: PyTree, *inputs: Any) -> Any:
        params, state = (paths.flatten(variables.get(part, {})) for part in ("params", "state"))
        rest = [constants[name] if name in constants else state[name] for name in others]
        given = inputs if structure is None else (keras.tree.pack_sequence_as(structure, inputs),)
        with jax.numpy_rank_promotion("allow"):  # which Keras's layers rely on
            outputs, _ = model.stateless_call([params[name] for name in trained], rest, *given, **mode)
        return tuple(outputs) if isinstance(outputs, list) else outputs

    values = dict(zip(others, model.non_trainable_variables))
    variables = {"params": nested({name: _array(one) for name, one in zip(trained, model.trainable_variables)})}
    variables["state"] = nested({name: _array(values[name]) for name in kept})
    return Model(apply, variables, example or _zeros(model, structure, keras))


@checked_but("model")
def to_keras(model: Model, keras_model: Any) -> Any:
    """Set a model's weights back into the Keras model that it came from.

    Packed leaves are written as the dense arrays that they stand for: Keras has the numbers, not the bytes.

    Args:
      model: as `from_keras` made it, pruned, quantized or tuned since; not one with other shapes.
      keras_model: the Keras model; changed in place.

    Returns:
      the Keras model.

    Raises:
      ValueError: for variables that are missing, unknown or of another shape, with all of them; then nothing is changed.

    Example:
      >>> to_keras(3, None)
      Traceback (most recent call last):
      ...
      TypeError: to_keras: model must be a Model; got 3 (int). Write Model(apply, variables, (x,)).
    """
    check_model("to_keras: model", model)
    variables = model.variables
    # Factors and coded weights alike become dense: outside of jit, since Keras keeps what it is given.
    leaves = {part: paths.flatten(dense(variables.get(part, {}))) for part in ("params", "state")}
    places = {"params": keras_model.trainable_variables, "state": keras_model.non_trainable_variables}
    heading = (
        "to_keras: the model does not fit the Keras model. A shrunk one cannot be set back: save it as .lepton, or write it as "
        "ONNX (lepton_jax.deploy.save)"
    )
    chosen: list[tuple[Any, Any]] = []
    with collect(heading) as problems:
        for part, keras_variables in places.items():
            names = dict(zip(names_of(keras_variables), keras_variables))
            problems.extend(f"{part}/{name}: unknown to the Keras model" for name in leaves[part] if name not in names)
            for name, variable in names.items():
                leaf = leaves[part].get(name)
                if leaf is None:
                    if jnp.issubdtype(variable.value.dtype, jnp.floating):
                        problems.append(f"{part}/{name}: missing")
                elif tuple(leaf.shape) != tuple(variable.shape):
                    problems.append(f"{part}/{name}: {list(leaf.shape)}; the Keras model has {list(variable.shape)}")
                else:
                    chosen.append((variable, leaf))
    for variable, leaf in chosen:
        variable.assign(leaf)
    return keras_model


def backend() -> Any:
    """Return the package Keras on the JAX backend, which is chosen if Keras was not imported before.

    Raises:
      ImportError: if it is not installed, or runs on another backend.
    """
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = import_extra("keras", "keras")
    if keras.backend.backend() != "jax":
        raise ImportError(
            f"Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax in the environment before it is first imported."
        )
    return keras


def names_of(variables: Sequence[Any]) -> list[str]:
    """Return the names of Keras variables, those that come again with a number.

    Example:
      >>> from types import SimpleNamespace as V
      >>> names_of([V(path="a/kernel"), V(path="b/kernel"), V(path="a/kernel"), V(path="a/kernel_1")])
      ['a/kernel', 'b/kernel', 'a/kernel_2', 'a/kernel_1']
    """
    own, names = {variable.path for variable in variables}, []
    for variable in variables:
        name, number = variable.path, 1
        while name in names or (number > 1 and name in own):
            name, number = f"{variable.path}_{number}", number + 1
        names.append(name)
    return names


def _array(variable: Any) -> jax.Array:
    return jnp.array(variable.value)  # a copy: Keras may give its own buffers away when it trains


def _structure(model: Any) -> Any:
    """How the model takes its inputs; None for one after another."""
    found = model.input if len(getattr(model, "inputs", None) or ()) > 1 else None
    return found if isinstance(found, list | tuple | dict) else None


def _zeros(model: Any, structure: Any, keras: Any) -> tuple[Any, ...]:
    tensors = keras.tree.flatten(structure) if structure is not None else getattr(model, "inputs", None)
    if not tensors:
        raise ValueError("from_keras: the model declares no inputs; give examples of them: from_keras(model, x).")
    shapes = [[(_UNKNOWN if i else 1) if n is None else n for i, n in enumerate(tensor.shape)] for tensor in tensors]
    return tuple(jnp.zeros(shape, tensor.dtype) for shape, tensor in zip(shapes, tensors))
