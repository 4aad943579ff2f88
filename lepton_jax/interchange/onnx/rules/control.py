"""Branches, loops and scans over graphs within the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.core.errors import ArtifactError
from lepton_jax.interchange.onnx.host import is_host, on_device
from lepton_jax.interchange.onnx.parts import Graph
from lepton_jax.interchange.onnx.site import Codes, Rule, Site, TooMuchError

_UNROLLED = 4
"""Loops of so few turns are written out: what is known before stays known in them."""
_MASKED = 1 << 10
"""A loop that may end early has a derivative if it has so few turns at most: all are made, those after the end for nothing."""
_MOST_UNROLLED = 1 << 10
"""Turns that are written out at most."""
_NO_END = 2**31 - 1


def plain(value: Any) -> Any:
    """A value as compiled loops and branches carry it."""
    if isinstance(value, tuple):
        raise ValueError("a sequence goes through a loop or a branch whose course depends on the inputs")
    return value.integers() if isinstance(value, Codes) else on_device(value)


def branch(site: Site, condition: Any) -> Any:
    """One of two graphs; both are compiled where the condition depends on the inputs."""
    graphs = [site.get(name) for name in ("else_branch", "then_branch")]
    if is_host(condition):
        return site.evaluate(graphs[bool(np.asarray(condition).reshape(-1)[0])], {})

    def made(graph: Graph) -> Any:
        return lambda: tuple(map(plain, site.evaluate(graph, {})))

    with site.budget.both():
        return _both(condition, graphs, made)


def _both(condition: Any, graphs: list[Graph], made: Callable[[Graph], Any]) -> Any:
    shapes: list[Any] = []
    for graph in graphs:
        try:
            shapes.append(jax.eval_shape(made(graph)))
        except ArtifactError as error:  # a branch for inputs of other shapes
            if getattr(error, "too_much", False):
                raise
            shapes.append(error)
    if all(isinstance(one, ArtifactError) for one in shapes):
        raise shapes[1]
    whole = next(one for one in shapes if not isinstance(one, ArtifactError))
    runs = [_nothing(whole) if isinstance(one, ArtifactError) else made(graph) for one, graph in zip(shapes, graphs)]
    kinds = [[(one.shape, one.dtype) for one in of] for of in shapes if not isinstance(of, ArtifactError)]
    if kinds[0] != kinds[-1]:
        said = " and ".join(str([tuple(map(str, shape)) for shape, _ in of]) for of in kinds)
        raise ValueError(f"its branches give values of the shapes {said}, and which is taken depends on the inputs")
    return lax.cond(condition.reshape(()), runs[1], runs[0])


def _nothing(shapes: Any) -> Any:
    """What a branch gives that cannot take inputs of these shapes: NaN, and zero where there is none."""

    def run() -> Any:
        real = [jnp.issubdtype(one.dtype, jnp.inexact) for one in shapes]
        return tuple(jnp.full(one.shape, jnp.nan if is_real else 0, one.dtype) for one, is_real in zip(shapes, real))

    return run


class _Loop:
    """A loop while it is evaluated."""

    def __init__(self, site: Site, carried: tuple[Any, ...]):
        self.site, self.body, self.carried = site, site.get("body"), carried
        self.names = [port.name for port in self.body.inputs]
        self.count = len(carried)

    def once(self, turn: Any, condition: Any, carried: Any) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
        """(whether it goes on, what it carries, what it leaves behind) after one turn."""
        outs = self.site.evaluate(self.body, dict(zip(self.names, (turn, condition, *carried))))
        return outs[0], tuple(outs[1 : 1 + self.count]), tuple(outs[1 + self.count :])

    def unrolled(self, turns: int | None, condition: Any) -> tuple[Any, ...]:
        """Turn by turn, while whether it goes on is known."""
        carried, left, turn = self.carried, [], 0
        while (turns is None or turn < turns) and bool(np.asarray(condition).reshape(-1)[0]):
            condition, carried, behind = self.once(np.asarray(turn, np.int64), condition, carried)
            left.append(behind)
            turn += 1
            if turn > _MOST_UNROLLED:
                raise TooMuchError(f"more than {_MOST_UNROLLED} turns, which cannot be one compiled loop: its shapes change")
            if not is_host(condition):
                raise ValueError("how often its body runs, and with it a shape, depends on the inputs")
        return (*carried, *self.stacked(left))

    def stacked(self, left: list[tuple[Any, ...]]) -> list[Any]:
        """What the turns left behind, one after the other along a new axis."""
        if left:
            return [jnp.stack([on_device(one) for one in each]) for each in zip(*left)]
        ports = self.body.outputs[1 + self.count :]
        empty = [[n if isinstance(n, int) else 0 for n in port.dims or ()] for port in ports]
        return [jnp.zeros((0, *dims), jax.dtypes.canonicalize_dtype(p.dtype or np.float32)) for p, dims in zip(ports, empty)]

    def scanned(self, turns: int) -> tuple[Any, ...]:
        """As one compiled loop, which has a derivative."""
        start = tuple(map(plain, self.carried))

        def step(state: Any, turn: Any) -> Any:
            on, carried = state
            condition, new, behind = self.once(turn, np.asarray(True), carried)
            new = tuple(map(plain, new))
            if is_host(condition):
                if not bool(np.asarray(condition).reshape(-1)[0]):
                    raise ValueError("its condition is false after the first turn")
                return (on, new), tuple(map(plain, behind))
            if behind:
                raise ValueError("how many values it leaves behind depends on the inputs")
            kept = tuple(jnp.where(on, a, b) for a, b in zip(new, carried))
            return (on & condition.reshape(()), kept), ()

        (_, carried), left = lax.scan(step, (jnp.asarray(True), start), jnp.arange(turns))
        return (*carried, *left)

    def waiting(self, turns: Any, condition: Any) -> tuple[Any, ...]:
        """As one compiled loop of unknown length, which has no derivative backwards."""
        if len(self.body.outputs) > 1 + self.count:
            raise ValueError("how many values it leaves behind depends on the inputs")
        limit = jnp.asarray(_NO_END) if turns is None else on_device(turns).reshape(())
        start = (jnp.asarray(0), on_device(condition).reshape(()), tuple(map(plain, self.carried)))

        def step(state: Any) -> Any:
            turn, on, carried = state
            condition, new, _ = self.once(turn, on, carried)
            return turn + 1, on_device(condition).reshape(()), tuple(map(plain, new))

        return tuple(lax.while_loop(lambda state: state[1] & (state[0] < limit), step, start)[2])


def loop(site: Site, turns: Any = None, condition: Any = None, *carried: Any) -> Any:
    """A graph run over and over: a number of times, or while a condition holds."""
    made, condition = _Loop(site, carried), np.asarray(True) if condition is None else condition
    known = is_host(turns) and is_host(condition)
    if not known:
        return made.waiting(turns, condition)
    limit = None if turns is None else int(np.asarray(turns).reshape(-1)[0])
    limit = None if limit is not None and limit >= _NO_END else limit
    on = bool(np.asarray(condition).reshape(-1)[0])
    ways: list[Callable[[], tuple[Any, ...]]] = [lambda: made.unrolled(limit, condition)]
    if limit is not None and limit > _UNROLLED and on and not any(isinstance(one, tuple) for one in carried):
        short = limit <= _MASKED or len(made.body.outputs) > 1 + made.count
        ways.insert(0, lambda: made.scanned(limit) if short else _long(made, limit))
    elif limit is not None and limit <= _MASKED:
        ways.append(lambda: made.scanned(limit))
    else:
        ways.append(lambda: made.waiting(turns, condition))
    return _first(ways)


def _first(ways: list[Callable[[], tuple[Any, ...]]]) -> tuple[Any, ...]:
    """What the first way gives that does: some do not take shapes that change, or that depend on the turn."""
    for number, way in enumerate(ways):
        try:
            return way()
        except (TypeError, ValueError, NotImplementedError) as error:
            if getattr(error, "too_much", False) or isinstance(error, TooMuchError) or number == len(ways) - 1:
                raise
    raise ValueError("there is no way to run it")


def _long(made: _Loop, limit: int) -> tuple[Any, ...]:
    return made.waiting(np.asarray(min(limit, _NO_END), np.int32), np.asarray(True))


def scan(site: Site, *values: Any) -> Any:
    """A graph run for each part of some inputs along an axis."""
    if site.version < 9:
        raise ValueError("Scan of operator set 8 is not read; convert the file to 9 or later with onnx.version_converter")
    body, parts = site.get("body"), site.get("num_scan_inputs")
    states = len(values) - parts
    names = [port.name for port in body.inputs]
    axes = site.get("scan_input_axes", [0] * parts)
    back = site.get("scan_input_directions", [0] * parts)
    left = len(body.outputs) - states
    out_axes, out_back = (site.get(f"scan_output_{name}", [0] * left) for name in ("axes", "directions"))
    over = [jnp.moveaxis(plain(x), axis, 0) for x, axis in zip(values[states:], axes)]
    over = [jnp.flip(x, 0) if turned else x for x, turned in zip(over, back)]

    def step(carry: Any, part: Any) -> Any:
        outs = tuple(map(plain, site.evaluate(body, dict(zip(names, (*carry, *part))))))
        return outs[:states], outs[states:]

    carry, behind = lax.scan(step, tuple(map(plain, values[:states])), tuple(over))
    behind = [jnp.flip(y, 0) if turned else y for y, turned in zip(behind, out_back)]
    return (*carry, *(jnp.moveaxis(y, 0, axis) for y, axis in zip(behind, out_axes)))


RULES: dict[str, Rule] = {
    "If": Rule(branch, both=True),
    "Loop": Rule(loop, both=True),
    "Scan": Rule(scan, both=True),
}
