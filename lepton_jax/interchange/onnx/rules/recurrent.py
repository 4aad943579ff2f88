"""LSTM, GRU and simple recurrent layers: both directions in one loop, their weights stacked by direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lepton_jax.interchange.onnx.site import Rule, Site

_SIMPLE: dict[str, Callable[[Any], Any]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "softsign": jax.nn.soft_sign,
    "softplus": jax.nn.softplus,
}
_DEFAULTS = {"affine": (1.0, 0.0), "leakyrelu": (0.01, 0.0), "thresholdedrelu": (1.0, 0.0), "scaledtanh": (1.0, 1.0),
             "hardsigmoid": (0.2, 0.5), "elu": (1.0, 0.0)}  # fmt: skip


def _activation(name: str, alpha: float, beta: float) -> Callable[[Any], Any]:
    forms: dict[str, Callable[[Any], Any]] = {
        "affine": lambda x: alpha * x + beta,
        "leakyrelu": lambda x: jnp.where(x < 0, alpha * x, x),
        "thresholdedrelu": lambda x: jnp.where(x > alpha, x, 0 * x),
        "scaledtanh": lambda x: alpha * jnp.tanh(beta * x),
        "hardsigmoid": lambda x: jnp.clip(alpha * x + beta, 0, 1),
        "elu": lambda x: jax.nn.elu(x, alpha),
    }
    name = name.lower()
    if name in _SIMPLE:
        return _SIMPLE[name]
    if name not in forms:
        raise ValueError(f"there is no activation {name}")
    return forms[name]


def activations(site: Site, defaults: Sequence[str], directions: int) -> list[Callable[[Any], Any]]:
    """The functions of the gates; of two directions whose functions differ, each by its own half of the axis 0."""
    names = site.get("activations", list(defaults) * directions)
    alphas, betas = list(site.get("activation_alpha", [])), list(site.get("activation_beta", []))
    made = []
    for name in names:
        a, b = _DEFAULTS.get(name.lower(), (0.0, 0.0))
        if name.lower() in _DEFAULTS:
            a, b = (alphas.pop(0) if alphas else a), (betas.pop(0) if betas else b)
        made.append((name.lower(), a, b))
    count = len(defaults)
    first, second = made[:count], made[count : 2 * count] or made[:count]
    if first == second:
        return [_activation(*one) for one in first]
    return [_halves(_activation(*one), _activation(*two)) for one, two in zip(first, second)]


def _halves(one: Callable[[Any], Any], two: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: jnp.concatenate([one(x[:1]), two(x[1:])])


class Layer:
    """What the three layers have in common.

    Args:
      site: of the node.
      x: (time, batch, inputs), or with `layout` 1 (batch, time, inputs).
      w, r: weights of inputs and of states, (directions, gates * hidden, inputs), or as they are stored here, (directions,
        inputs, gates * hidden).
      lens: the length of each sequence, or None.
    """

    def __init__(self, site: Site, x: Any, w: Any, r: Any, lens: Any, stored: bool = False):
        self.site, self.flipped = site, bool(site.get("layout", 0))
        self.x = jnp.swapaxes(x, 0, 1) if self.flipped else x
        stored = stored or site.node.stored
        self.w: Any
        self.r: Any
        self.w, self.r = (w, r) if stored else (jnp.swapaxes(w, 1, 2), jnp.swapaxes(r, 1, 2))
        self.directions, self.hidden = self.r.shape[0], self.r.shape[1]
        self.lens, self.time = lens, self.x.shape[0]
        direction = site.get("direction", "forward")
        self.back = [direction == "reverse"] if self.directions == 1 else [False, True]

    def start(self, given: Any) -> Any:
        """A first state, (directions, batch, hidden)."""
        if given is None:
            return jnp.zeros((self.directions, self.x.shape[1], self.hidden), self.x.dtype)
        given = jnp.swapaxes(given, 0, 1) if self.flipped else given
        wanted = (self.directions, self.x.shape[1], self.hidden)
        if given.shape != wanted:
            raise ValueError(f"a first state of shape {given.shape} in place of {wanted}")
        return given

    def clipped(self, x: Any) -> Any:
        limit = self.site.get("clip")
        return x if limit is None else jnp.clip(x, -limit, limit)

    def _turned(self, x: Any, direction: int) -> Any:
        """(time, batch, ...) in the order in which a direction goes."""
        if not self.back[direction]:
            return x
        if self.lens is None:
            return jnp.flip(x, 0)
        places = jnp.arange(self.time)[:, None]
        places = jnp.where(places < self.lens[None], self.lens[None] - 1 - places, places)
        return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), 0, mode="clip")

    def run(self, step: Callable[[Any, Any], Any], carry: tuple[Any, ...]) -> tuple[Any, ...]:
        """All states, (time, directions, batch, hidden), and the last ones."""
        into = jnp.stack([self._turned(self.x, d) for d in range(self.directions)], 1)
        into = jnp.einsum("tdbi,dig->tdbg", into, self.w.astype(self.x.dtype))

        def masked(carry: Any, given: Any) -> Any:
            now, part = given
            new = step(carry, part)
            if self.lens is not None:
                on = (now < self.lens)[None, :, None]
                out = jnp.where(on, new[0], 0)
                return tuple(jnp.where(on, a, b) for a, b in zip(new, carry)), out
            return new, new[0]

        last, states = lax.scan(masked, carry, (jnp.arange(self.time), into))
        states = jnp.stack([self._turned(states[:, d], d) for d in range(self.directions)], 1)
        if self.flipped:
            return (states.transpose(2, 0, 1, 3), *(jnp.swapaxes(one, 0, 1) for one in last))
        return (states, *last)


def _product(h: Any, r: Any) -> Any:
    return jnp.einsum("dbh,dhg->dbg", h, r.astype(h.dtype))


def _biases(b: Any, like: Any, gates: int, layer: Layer) -> tuple[Any, Any]:
    """Those of inputs and of states, (directions, 1, gates * hidden)."""
    if b is None:
        zero = jnp.zeros((layer.directions, 1, gates * layer.hidden), like.dtype)
        return zero, zero
    half = gates * layer.hidden
    return b[:, None, :half], b[:, None, half:]


def lstm(
    site: Site,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    lens: Any = None,
    h: Any = None,
    c: Any = None,
    p: Any = None,
    rounded: Callable[[Any], Any] | None = None,
) -> Any:
    """Long short-term memory; gates in the order input, output, forget, cell.

    With `rounded` inputs and states go through it before they are multiplied, and weights are as `Layer` stores them.
    """
    layer = Layer(site, x if rounded is None else rounded(x), w, r, lens, stored=rounded is not None)
    round_ = (lambda y: y) if rounded is None else jax.vmap(rounded)
    f, g, last = activations(site, ("Sigmoid", "Tanh", "Tanh"), layer.directions)
    wb, rb = _biases(b, x, 4, layer)
    bias, couple = wb + rb, bool(site.get("input_forget", 0))
    peep = None if p is None else jnp.split(p[:, None, :], 3, -1)

    def step(carry: Any, part: Any) -> Any:
        state, cell = carry
        i, o, forget, new = jnp.split(layer.clipped(part + _product(round_(state), layer.r) + bias), 4, -1)
        if peep is not None:
            i, forget = i + peep[0] * cell, forget + peep[2] * cell
        i = f(i)
        forget = 1 - i if couple else f(forget)
        cell = forget * cell + i * g(new)
        o = f(o + peep[1] * cell) if peep is not None else f(o)
        return o * last(cell), cell

    return layer.run(step, (layer.start(h), layer.start(c)))


def gru(site: Site, x: Any, w: Any, r: Any, b: Any = None, lens: Any = None, h: Any = None) -> Any:
    """Gated recurrent unit; gates in the order update, reset, hidden."""
    layer = Layer(site, x, w, r, lens)
    f, g = activations(site, ("Sigmoid", "Tanh"), layer.directions)
    wb, rb = _biases(b, x, 3, layer)
    before, size = bool(site.get("linear_before_reset", 0)), layer.hidden

    def step(carry: Any, part: Any) -> Any:
        (state,) = carry
        z, reset, new = jnp.split(part + wb, 3, -1)
        if before:
            rz, rr, rh = jnp.split(_product(state, layer.r) + rb, 3, -1)
            reset = f(layer.clipped(reset + rr))
            new = g(layer.clipped(new + reset * rh))
        else:
            rz, rr = jnp.split(_product(state, layer.r[..., : 2 * size]) + rb[..., : 2 * size], 2, -1)
            reset = f(layer.clipped(reset + rr))
            new = g(layer.clipped(new + _product(reset * state, layer.r[..., 2 * size :]) + rb[..., 2 * size :]))
        z = f(layer.clipped(z + rz))
        return ((1 - z) * new + z * state,)

    return layer.run(step, (layer.start(h),))


def rnn(site: Site, x: Any, w: Any, r: Any, b: Any = None, lens: Any = None, h: Any = None) -> Any:
    """A simple recurrent layer."""
    layer = Layer(site, x, w, r, lens)
    [f] = activations(site, ("Tanh",), layer.directions)
    wb, rb = _biases(b, x, 1, layer)

    def step(carry: Any, part: Any) -> Any:
        return (f(layer.clipped(part + _product(carry[0], layer.r) + (wb + rb))),)

    return layer.run(step, (layer.start(h),))


RULES: dict[str, Rule] = {"GRU": Rule(gru), "LSTM": Rule(lstm), "RNN": Rule(rnn)}
