"""Going from layer to layer: the same inputs as by running the whole model, what is alike compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.core import paths
from lepton_jax.graph import programs
from lepton_jax.graph.passage import Track
from lepton_jax.graph.programs import run_shared


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def net(v, x):
    """A tied table, casts of all weights at the start, a scan, a call and a residual."""
    v = jax.tree.map(lambda w: w.astype("float32") * 1.0 if w.ndim == 1 else w.astype("float32"), v)
    h = v["table"][jnp.arange(x.shape[0]) % 3] + x @ v["first"]
    h = h + jax.jit(lambda h: jnp.tanh(h @ v["middle"].T))(h)
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, v["layers"])
    return jax.nn.relu(h * v["scale"][None]) @ v["table"].T, h


VARIABLES = {
    "table": normal(0, 3, 4),
    "first": normal(1, 5, 4),
    "middle": normal(2, 4, 4),
    "layers": normal(3, 2, 4, 4),
    "scale": normal(4, 4),
}


def inputs_by_hand(v, x):
    """What every layer is fed, in float64."""
    v, x = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (v, x))
    found = {"first": x}
    h = v["table"][np.arange(len(x)) % 3] + x @ v["first"]
    found["middle"] = h
    h = h + np.tanh(h @ v["middle"].T)
    steps = []
    for w in v["layers"]:
        steps.append(h)
        h = np.tanh(h @ w)
    return found | {"layers": np.stack(steps), "table": np.maximum(h * v["scale"], 0)}


@pytest.mark.parametrize("order", [["first", "middle", "layers", "table"], ["layers", "first", "table", "middle"]])
def test_inputs_of_layers_that_change_one_after_the_other(order):
    """Also where a changed leaf, such as a tied table, has been read before, and in batches of two sizes."""
    v, batches = VARIABLES, [(normal(5, 6, 5),), (normal(6, 3, 5),)]
    track = Track(net, v, batches, order)
    for path in order:
        for (passage, given), (x,) in zip(track.at(path, v), batches, strict=True):
            [found] = passage.inputs_of(path, given)
            np.testing.assert_allclose(found, inputs_by_hand(v, x)[path], rtol=1e-5, atol=1e-5)
        v = paths.replace(v, {path: 1.5 * v[path]})
        track.changed(path)
    v = paths.replace(v, {"scale": 2 * v["scale"]})
    track.changed("scale")
    for (passage, given), (x,) in zip(track.at("table", v), batches, strict=True):
        np.testing.assert_allclose(passage.inputs_of("table", given)[0], inputs_by_hand(v, x)["table"], rtol=1e-5, atol=1e-5)


def test_what_is_alike_is_compiled_once():
    def deep(v, x):
        for layer in v:
            x = jnp.tanh(jnp.tanh(x @ layer["w"]) @ layer["u"]) * 0.5
        return x

    v = [{"w": normal(i, 4, 4), "u": normal(9 + i, 4, 4)} for i in range(6)]
    before = programs._compiled.cache_info().misses
    track = Track(deep, v, [(normal(20, 3, 4),)], [f"{i}/w" for i in range(6)])
    for i in range(6):
        list(track.at(f"{i}/w", v))
    assert programs._compiled.cache_info().misses - before == 1


def test_programs_that_differ_are_not_shared():
    x = normal(7, 4)
    for power, clip in ((2, 1.0), (3, 1.0), (2, 0.5)):
        expected = np.minimum(np.asarray(x) ** power, clip)
        given = run_shared(lambda power, clip, x: jnp.minimum(x**power, clip), (power, clip), x)
        np.testing.assert_allclose(given, expected, rtol=1e-6)
    table = np.arange(4.0, dtype=np.float32)
    for scale in (1.0, 2.0):  # written into the program
        held = scale * table
        np.testing.assert_allclose(run_shared(lambda _, x, held=held: x + jnp.asarray(held), (scale,), x), x + held)


def test_a_layer_that_is_used_twice_is_fed_twice():
    v, x = {"w": normal(8, 4, 4)}, normal(9, 3, 4)
    track = Track(lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"], v, [(x,)], ["w"])
    [(passage, given)] = track.at("w", v)
    first, second = passage.inputs_of("w", given)
    np.testing.assert_allclose(first, x)
    np.testing.assert_allclose(second, np.tanh(np.asarray(x) @ np.asarray(v["w"])), rtol=1e-5, atol=1e-6)
