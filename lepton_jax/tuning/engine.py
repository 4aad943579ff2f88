"""How long each layer takes alone in the engine that will run the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path as File
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.core.extras import import_extra
from lepton_jax.core.typing import Path, PyTree
from lepton_jax.deploy import gate, runner
from lepton_jax.deploy import save as deploy
from lepton_jax.graph import _compat
from lepton_jax.graph.origins import operand_origins, origins
from lepton_jax.graph.roles import weights
from lepton_jax.graph.trace import Apply, Equation, trace
from lepton_jax.tuning.groups import settled
from lepton_jax.tuning.layer import Layer, made_of
from lepton_jax.tuning.options import Choice

Engine = Literal["onnxruntime"]
_ROUNDS = 5
_PRODUCTS = ("dot_general", "conv_general_dilated")


class _Use(NamedTuple):
    """A product that a weight is an operand of."""

    eqn: Equation
    operand: int

    @property
    def name(self) -> str:
        shapes = [f"{aval.shape}{aval.dtype}" for aval in self.eqn.in_avals]
        return f"{self.eqn.primitive} {self.operand} {shapes} {sorted(map(str, self.eqn.params.items()))}"


class _Alone(NamedTuple):
    """A product as a model."""

    apply: Apply
    variables: PyTree
    example: tuple[Any, ...]


class LayerTimes:
    """Seconds of processor time of layers alone, by ONNX Runtime on one core; see `lepton_jax.deploy.gate`.

    The products that a weight is in are files of their own, with the weight as a choice packs it. Products of the same shapes
    are timed once. What takes no time of its own in a dense engine, zeros, is not timed; nor are look-ups.

    Args:
      apply: ``apply(variables, *inputs)``.
      variables: of the model.
      inputs: of one call.

    Raises:
      ImportError: if the engine is not installed; says how to.

    Example:
      >>> times = LayerTimes(lambda v, x: x @ v["w"], {"w": jnp.ones((64, 64))}, (jnp.ones((8, 64)),))
      >>> [plain, thin] = times.of("w", [Choice(), Choice(rank=4)])
      >>> 0 < plain < 0.1, 0 < thin < 0.1
      (True, True)
    """

    def __init__(self, apply: Apply, variables: PyTree, inputs: tuple[Any, ...]) -> None:
        import_extra("onnxruntime", "deploy")
        self._uses: dict[Path, list[_Use]] = {}
        self._known: dict[tuple[str, Choice], float] = {}
        traced = trace(apply, variables, *inputs)
        found = origins(traced)
        for eqn in traced.equations():
            if eqn.primitive in _PRODUCTS:
                given = operand_origins(found, eqn)
                of_one = [number for number, origin in enumerate(given) if origin is not None and len(origin) == 1]
                for number in of_one if len(of_one) == 1 else ():
                    [path] = given[number] or [""]
                    self._uses.setdefault(path, []).append(_Use(eqn, number))

    def of(self, path: Path, choices: Iterable[Choice]) -> list[float]:
        """Return the seconds of a layer under each settled choice, in all its products in one call."""
        wanted = [_form(choice) for choice in choices]
        totals = dict.fromkeys(wanted, 0.0)
        for use in self._uses.get(path, []):
            for form, seconds in self._timed(use, list(totals)).items():
                totals[form] += (use.eqn.times or 1) * seconds
        return [totals[form] for form in wanted]

    def _timed(self, use: _Use, forms: list[Choice]) -> Mapping[Choice, float]:
        missing = [form for form in forms if (use.name, form) not in self._known]
        if missing:
            found = gate({str(form): _runner(use, form) for form in missing}, rounds=_ROUNDS).seconds
            self._known |= {(use.name, form): found[str(form)] for form in missing}
        return {form: self._known[use.name, form] for form in forms}


def _form(choice: Choice) -> Choice:
    """What the engine can tell: whether numbers are codes of up to 4 or up to 8 bits, and ranks."""
    return Choice(bits=None if choice.bits is None else 4 if choice.bits <= 4 else 8, rank=choice.rank)


def _runner(use: _Use, form: Choice) -> Any:
    avals = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in use.eqn.in_avals]
    rng = np.random.default_rng(0)
    weight, x = (jnp.asarray(rng.normal(size=one.shape), one.dtype) for one in (avals[use.operand], avals[1 - use.operand]))

    def apply(variables: PyTree, x: Any) -> Any:
        operands = [variables["w"], x] if use.operand == 0 else [x, variables["w"]]
        return _compat.bind(use.eqn.raw, operands)[0]

    axes = weights(apply, {"w": weight}, x).axes("w")
    variables: PyTree = {"w": weight}
    if axes is not None and form != Choice():
        layer = Layer(shape=tuple(weight.shape), axes=axes, macs=0.0)
        variables = {"w": made_of(weight, axes, (settled(layer, form),))[0].packed}
    with tempfile.TemporaryDirectory() as folder:
        file = File(folder) / "layer.onnx"
        deploy(_Alone(apply, variables, (x,)), file)
        return partial(runner(file.read_bytes(), name="measure: engine"), x)
