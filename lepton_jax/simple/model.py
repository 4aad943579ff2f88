"""A model as one value: a pure function and its variables, some of which may be packed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax

from lepton_jax.artifact import save
from lepton_jax.artifact.inputs import Axes
from lepton_jax.artifact.lowered import fast
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.kinds import described
from lepton_jax.core.packed import dense
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.simple.inputs import check_like
from lepton_jax.simple.report import report


class Applied(NamedTuple):
    """A technique that was applied to a model.

    Attributes:
      text: its name and settings, ``prune(sparsity=0.9)``.
      pruned: the leaves whose zeros are to stay.
    """

    text: str
    pruned: tuple[Path, ...] = ()


@checked_but("apply", "example")
@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A pure function and its variables.

    Never changed: techniques return a new one. Called, it computes ``apply(unpack(variables), *inputs)``, compiled: the same
    bits as the file of `save`, loaded on the same backend.

    Args:
      apply: pure function ``apply(variables, *inputs)``, in evaluation mode.
      variables: its variables, any leaf of which may be packed. Of a mapping with "params", these are what is trained.
      example: arrays of the inputs' shapes and dtypes, which `save` needs; as in `lepton_jax.save`.
      applied: what was done to it.
      lowering: call it by `lepton_jax.graph.fast_lowering`; without operations that are slow, it is what it is without.

    Raises:
      TypeError: for a module in place of a function; see `from_linen` and `from_nnx`.

    Example:
      >>> import jax.numpy as jnp
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.array([[1.0, -3.0]])}, (jnp.ones((1, 1)),))
      >>> model(jnp.array([[2.0]])).tolist()
      [[2.0, -6.0]]
    """

    apply: Callable[..., Any]
    variables: PyTree
    example: tuple[Any, ...] = ()
    applied: tuple[Applied, ...] = ()
    lowering: bool = True

    def __post_init__(self) -> None:
        if (made := _module(self.apply)) is not None or not callable(self.apply):
            got, remedy = made or (f"a {type(self.apply).__name__}", "")
            raise TypeError(f"Model: apply must be a pure function apply(variables, *inputs); got {got}.{remedy}")
        if not isinstance(self.example, tuple):
            raise TypeError(f"Model: example must be a tuple of inputs, (x,); got a {type(self.example).__name__}.")

    @classmethod
    def from_linen(cls, module: Any, variables: PyTree, *example: Any, **options: Any) -> Model:
        """Make a model of a Linen module.

        Args:
          module: a `flax.linen.Module`.
          variables: as `module.init` made them, trained or not.
          example: inputs, see `Model`.
          **options: given to `module.apply` in every call, such as ``train=False``.

        Example:
          >>> import jax.numpy as jnp
          >>> from flax import linen as nn
          >>> module, x = nn.Dense(3), jnp.ones((1, 2))
          >>> Model.from_linen(module, module.init(jax.random.key(0), x), x)(x).shape
          (1, 3)
        """
        if not hasattr(module, "apply"):
            raise TypeError(f"Model.from_linen: module must be a flax.linen.Module; got {described(module)}.")
        return cls(partial(module.apply, **options) if options else module.apply, variables, example)

    @classmethod
    def from_nnx(cls, module: Any, *example: Any) -> Model:
        """Make a model of an NNX module, as it is now: call ``module.eval()`` first.

        Its parameters are under "params", all else (batch statistics, random streams) under "state".

        Args:
          module: a `flax.nnx.Module`.
          example: inputs, see `Model`.

        Example:
          >>> import jax.numpy as jnp
          >>> from flax import nnx
          >>> Model.from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))(jnp.ones((1, 2))).shape
          (1, 3)
        """
        from flax import nnx  # not needed for models of other kinds

        graph, params, state = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]

        def apply(variables: PyTree, *inputs: Any) -> Any:
            # Copied: in train mode it changes variables, which the transformation around it may not see.
            return nnx.merge(graph, variables["params"], variables["state"], copy=True)(*inputs)

        return cls(apply, {"params": params, "state": state}, example)

    @cached_property
    def dense(self) -> PyTree:
        """The variables without packed leaves."""
        with jax.ensure_compile_time_eval():  # what is kept must hold no tracers of a caller's jit
            return dense(self.variables)

    @cached_property
    def _run(self) -> Callable[..., Any]:
        return jax.jit(fast(self.apply) if self.lowering else self.apply)

    def __call__(self, *inputs: Any) -> Any:
        """Compute the outputs.

        Raises:
          ValueError: if it fails and the inputs are not like the example's; names each.
        """
        try:
            return self._run(self.dense, *inputs)
        except Exception as error:
            if self.example:
                check_like(self.example, inputs, error)
            raise

    def native(self) -> Callable[..., Any]:
        """Return the model on its packed leaves, compiled; see `lepton_jax.native.interpreter`.

        Values equal those of a call within rounding, since sums are taken in another order.
        """
        from lepton_jax.native import packed  # a quarter of the package, which plain models do not need

        return partial(jax.jit(packed(self.apply)), self.variables)

    def save(
        self,
        path: str | os.PathLike[str],
        *example: Any,
        native: bool = False,
        axes: Axes | None = None,
        constraints: Sequence[str] = (),
    ) -> None:
        """Write the model as one `.lepton` file.

        Args:
          path: the file; replaced in one step if it is there.
          example: inputs, if the model has none; see `Model`.
          native: as in `lepton_jax.save`.
          axes: likewise: ``{0: "batch", 1: "time"}``.
          constraints: likewise.

        Raises:
          ValueError: if there are no example inputs.
          ArtifactError: as in `lepton_jax.save`.
        """
        example = example or self.example
        if not example:
            raise ValueError(
                "save: needs example inputs, whose shapes and dtypes the program is compiled for: model.save(path, x), or "
                "Model(apply, variables, (x,))."
            )
        recipe = {"applied": [step.text for step in self.applied]} if self.applied else None
        save(path, self.apply, self.variables, *example, recipe=recipe, native=native, axes=axes, constraints=constraints)

    def deploy(
        self,
        path: str | os.PathLike[str],
        *,
        target: str = "onnxruntime",
        batches: Sequence[Any] = (),
        axes: Axes | None = None,
    ) -> Any:
        """Write the model as a file that another engine runs; see `lepton_jax.deploy`.

        Args:
          path: of the file, ``.onnx``, or ``.tflite`` for LiteRT.
          target: of a model in eight bits, "onnxruntime", "openvino" or "litert".
          batches: inputs to find ranges on, each an array or a tuple of arrays: weights and activations are put into eight
            bits. Without them the file has the model's own numbers.
          axes: which axes of the inputs may have any length, as in `save`.

        Returns:
          of a model in eight bits what `lepton_jax.deploy.place` gives, whose ``simulate(*inputs)`` are the file's numbers;
          else None.

        Raises:
          ImportError: if the engine's packages are not installed; says how.
          ValueError: for operations that the engine does not have, with all of them.
        """
        from lepton_jax.deploy import place, save  # packages that not everybody has

        if not batches:
            return save(self, path, axes=axes)
        placed = place(self, batches, target)  # type: ignore[arg-type]
        placed.save(path, axes=axes)
        return placed

    def tune(
        self,
        batches: Sequence[Any],
        *,
        bytes: float | str | None = None,
        macs: float | None = None,
        loss: float | str | None = None,
        file_bytes: float | str | None = None,
        latency: float | None = None,
        options: Sequence[Any] | None = None,
        progress: bool = True,
    ) -> Model:
        """Return the model by the best recipe of bits, zeros and ranks within the limits; see `lepton_jax.tuning.tune`.

        Args:
          batches: calibration batches, each an array or a tuple of arrays.
          bytes: of all tensors in the file, "50kB".
          macs: multiply-accumulates of one call.
          loss: a KL divergence to the outputs in nats, or "0.5%" of the answers that may change.
          file_bytes: of the whole file, "60kB"; the file is written to see it.
          latency: seconds of a call by ONNX Runtime on one core; the model is run to see it.
          options: what to try, such as ``[Bits(4), Channels(0.25, 0.5)]``, which changes shapes; None: the first three.
          progress: show bars.

        Raises:
          ValueError: for no limit, or limits that cannot be kept, with what can.
        """
        from lepton_jax.tuning import tune  # which measures whole models, and is seldom needed

        limits: dict[str, Any] = {"bytes": bytes, "macs": macs, "loss": loss, "file_bytes": file_bytes, "latency": latency}
        limits |= {} if options is None else {"options": options}
        found = tune(self.apply, self.dense, batches, **limits, progress=progress)
        applied = (*self.applied, *map(Applied, found.recipe.lines))
        return dataclasses.replace(self, apply=found.recipe.rewrite(self.apply), variables=found.variables, applied=applied)

    def report(self) -> str:
        """Return a table of what is in the model: each leaf's parameters, non-zeros and bytes, and what was applied."""
        return report(self.variables, [step.text for step in self.applied])

    def __repr__(self) -> str:
        name = getattr(self.apply, "__qualname__", type(self.apply).__name__)
        return f"Model({name}, {len(jax.tree.leaves(self.dense))} leaves)"


_MAKERS = {
    "flax.linen": "Model.from_linen(module, variables, x)",
    "flax.nnx": "Model.from_nnx(module, x)",
    "": "params, static = eqx.partition(module, eqx.is_array), and Model(lambda v, x: eqx.combine(v, static)(x), params, (x,))",
}
"""How a model is made of a module, by the library that it is of; of any other whose modules are trees of arrays the last."""


def _module(value: Any) -> tuple[str, str] | None:
    """What a module is, and how to make a model of it; None for what is no module."""
    kind = value if isinstance(value, type) else type(value)
    bases = [base.__module__ for base in kind.__mro__ if base.__name__ == "Module"]
    library = next((name for name in _MAKERS if name and any(base.startswith(name) for base in bases)), None)
    if library is None:
        holds = not isinstance(value, (type, jax.tree_util.Partial)) and callable(value) and is_array_tree(value)
        if not holds and not any(base.startswith("equinox") for base in bases):
            return None
        return f"a {kind.__name__}, a module that holds its own arrays", f" Write {_MAKERS['']}."
    return f"the {library} module {kind.__name__}", f" Write {_MAKERS[library]}."


def is_array_tree(value: Any) -> bool:
    """Whether a value is a tree of which a leaf is an array.

    Example:
      >>> import numpy as np
      >>> is_array_tree({"w": np.ones(2)}), is_array_tree(len)
      (True, False)
    """
    return any(hasattr(leaf, "dtype") and leaf is not value for leaf in jax.tree.leaves(value))


def check_model(name: str, model: Any) -> None:
    """Raise unless a technique is given a `Model`.

    Example:
      >>> check_model("prune_model: model", {"w": 1.0})
      Traceback (most recent call last):
      ...
      TypeError: prune_model: model must be a Model; got a dict. Write Model(apply, variables, (x,)).
    """
    if not isinstance(model, Model):
        got, remedy = _module(model) or (described(model), " Write Model(apply, variables, (x,)).")
        raise TypeError(f"{name} must be a Model; got {got}.{remedy}")


@checked_but("model")
def save_model(
    model: Model,
    path: str | os.PathLike[str],
    *example: Any,
    native: bool = False,
    axes: Axes | None = None,
    constraints: Sequence[str] = (),
) -> Model:
    """Write a model as one `.lepton` file; see `Model.save`.

    Returns:
      the model.

    Example:
      >>> import tempfile, jax.numpy as jnp, lepton_jax
      >>> model = Model(lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, (jnp.ones((1, 2)),))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_model(model, f"{folder}/m.lepton")
      ...     lepton_jax.load_model(f"{folder}/m.lepton")(jnp.array([[3.0, 4.0]])).tolist()
      Model(<lambda>, 1 leaves)
      [[3.0, 4.0]]
    """
    check_model("save_model: model", model)
    model.save(path, *example, native=native, axes=axes, constraints=constraints)
    return model
