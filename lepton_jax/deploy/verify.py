"""Whether a file gives what its model gives, and if not, where it first differs."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.packed import unpack
from lepton_jax.deploy.engine import runner
from lepton_jax.deploy.models import deployable
from lepton_jax.deploy.place import Placed


@checked
@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a file's outputs differ from its model's.

    Attributes:
      equal: whether all are the same, bit for bit.
      largest: the largest difference.
      scale: the largest magnitude of the model's outputs.
      agreement: how often the largest of an example's outputs is the same one; 1 for outputs of one number.
      first: the first value in eight bits whose codes differ; "" if none does, or there is none.

    Example:
      >>> print(Verification(equal=False, largest=0.5, scale=10.0, agreement=1.0, first="Dense_0/dot_general"))
      outputs differ by 0.5 at most, of 10 at most; the largest of each example agrees in 100.00 %; first at Dense_0/dot_general
    """

    equal: bool
    largest: float
    scale: float
    agreement: float
    first: str = ""

    def __str__(self) -> str:
        if self.equal:
            return "outputs are equal, bit for bit"
        text = f"outputs differ by {self.largest:.4g} at most, of {self.scale:.4g} at most"
        text += f"; the largest of each example agrees in {100 * self.agreement:.2f} %"
        return f"{text}; first at {self.first}" if self.first else text


@checked_but("model", "inputs")
def verify(path: str | os.PathLike[str], model: Any, *inputs: Any) -> Verification:
    """Run a file in its engine, and compare its outputs with those of its model.

    Args:
      path: of the file.
      model: what it was saved from: a `Placed` model, whose simulation is the reference and whose layers are gone through; or a
        `lepton_jax.Model` or a loaded `.lepton` file.
      *inputs: as the model takes them.

    Raises:
      ImportError, ArtifactError: if there is no engine, or it does not take the file.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from lepton_jax import Model, deploy
      >>> placed = deploy.place(Model(lambda v, x: x @ v, jnp.eye(2)), [jnp.array([[0.0, 255.0]])])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     placed.save(f"{folder}/m.onnx")
      ...     print(deploy.verify(f"{folder}/m.onnx", placed, jnp.array([[3.4, 300.0]])))
      outputs are equal, bit for bit
    """
    given = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], tuple) else inputs
    engine = model.target if isinstance(model, Placed) else None
    got = runner(path, engine=engine, name="deploy.verify")(*given)
    if isinstance(model, Placed):
        wanted = model.simulate(*given)
    else:
        found = deployable("deploy.verify", model, given)
        wanted = jax.jit(found.apply)(unpack(found.variables), *given)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(got, jax.tree.leaves(wanted), strict=True)]
    equal = all(a.shape == b.shape and np.array_equal(a, b, equal_nan=True) for a, b in pairs)
    largest = max((float(np.abs(a - b).max(initial=0)) for a, b in pairs), default=0.0)
    scale = max((float(np.abs(b).max(initial=0)) for _, b in pairs), default=0.0)
    ranked = [np.mean(a.argmax(-1) == b.argmax(-1)) for a, b in pairs if a.ndim and a.size]
    first = _first_difference(model, given) if isinstance(model, Placed) and not equal else ""
    return Verification(equal=equal, largest=largest, scale=scale, agreement=float(min(ranked, default=1.0)), first=first)


def _first_difference(model: Placed, inputs: tuple[Any, ...]) -> str:
    """The first value whose codes are others in the engine, of ONNX."""
    if model.target == "litert":
        return ""
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/codes.onnx", codes=True)
        outs = runner(f"{folder}/codes.onnx", engine=model.target, name="deploy.verify")(*inputs)
    simulated = model.codes(*inputs)
    for name, codes in zip(model.sites, outs[len(outs) - len(model.sites) :], strict=True):
        if not np.array_equal(codes, np.asarray(simulated[name])):
            return name
    return ""
