"""One pass over a graph: into calls and loops, with what is known of constants, each body by its own path."""

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax.graph.forward import Forward
from lepton_jax.graph.primitives import INLINED
from lepton_jax.graph.trace import trace


class Depth(Forward[int]):
    """How many operations a value is away from the inputs and constants."""

    def constant(self, value):
        return 0

    def operation(self, eqn, given):
        return [1 + max(given, default=0)] * len(eqn.outvars)


def depths(apply, *inputs):
    traced = trace(apply, {}, *inputs)
    search = Depth()
    return search.body(traced.jaxpr, traced.consts, [0] * len(traced.inputs)), search


def test_calls_that_share_a_jaxpr_keep_values_apart():
    shared = jax.jit(lambda x: jnp.sin(jnp.cos(x)))
    outs, search = depths(lambda v, x: shared(shared(x)), jnp.ones(3))
    assert outs == [4]
    assert sorted(depth for (path, _), depth in search.found.items() if path) == [0, 1, 2, 2, 3, 4]


def test_times_are_multiplied_on_the_way_into_loops():
    seen = {}

    class Times(Depth):
        def operation(self, eqn, given):
            seen[eqn.primitive] = eqn.times
            return super().operation(eqn, given)

    def apply(v, x):
        return jax.lax.scan(lambda c, _: (jnp.sin(c), None), jnp.cos(x), None, length=3)[0]

    traced = trace(apply, {}, 1.0)
    Times().body(traced.jaxpr, traced.consts, [0])
    assert {name: seen[name] for name in ("cos", "sin")} == {"cos": 1, "sin": 3}


def test_constants_of_every_jaxpr_are_known():
    table = np.arange(4.0, dtype=np.float32)
    _, search = depths(lambda v, x: x + jnp.asarray(table), jnp.ones(4))
    assert search.constants[()] in ((), (0,))


def test_plain_calls_hold_one_body_that_runs_once():
    traced = trace(lambda v, x: jax.checkpoint(jax.jit(jnp.sin))(jax.nn.relu(x)), {}, 1.0)
    calls = [eqn for eqn in traced.equations() if eqn.primitive in INLINED]
    assert len(calls) >= 3
    assert all(body.times == 1 for eqn in calls for body in eqn.bodies)
    assert all(len(eqn.bodies) == 1 for eqn in calls)
