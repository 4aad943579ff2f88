"""The base interpreter: the identity rewrite is the function itself, bit for bit, under every transformation."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.graph._compat import check_version, scan_counts
from lepton_jax.graph.interpret import Interpreter, rewrite
from lepton_jax.graph.trace import trace

sys.path.insert(0, str(Path(__file__).parent))
from models_for_graph import MODELS, clipped, control_flow, scaled


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def scalar(apply):
    """A loss: the cosines of all floating outputs."""

    def loss(variables, *inputs, **keywords):
        leaves = jax.tree.leaves(apply(variables, *inputs, **keywords))
        return sum(jnp.cos(leaf).sum() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))

    return loss


def floats(variables):
    leaves, tree = jax.tree.flatten(variables)
    chosen = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def fill(values):
        new = list(leaves)
        for i, value in zip(chosen, values):
            new[i] = value
        return jax.tree.unflatten(tree, new)

    return [leaves[i] for i in chosen], fill


# Train mode has all that eval mode has, and dropout and statistics.
@pytest.mark.parametrize("name", [name for name in MODELS if not name.endswith("eval")])
def test_identity_is_bitwise(name):
    apply, variables, inputs, keywords = MODELS[name]
    same = rewrite(apply, Interpreter)
    assert_same(jax.jit(apply)(variables, *inputs, **keywords), jax.jit(same)(variables, *inputs, **keywords))
    values, fill = floats(variables)
    grads = [jax.jit(jax.grad(lambda values, f=f: scalar(f)(fill(values), *inputs, **keywords)))(values) for f in (apply, same)]
    assert_same(*grads)
    assert any(np.any(g) for g in grads[0])


@pytest.mark.parametrize("name", ["convnet train", "control flow"])
def test_other_batch_size_and_vmap_and_checkpoint(name):
    apply, variables, inputs, keywords = MODELS[name]
    same = rewrite(apply, Interpreter)
    more = jax.tree.map(lambda x: jnp.concatenate([x, x, x]), inputs)
    assert_same(jax.jit(apply)(variables, *more, **keywords), jax.jit(same)(variables, *more, **keywords))
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), inputs)

    def per_example(f):
        def loss(w, x):
            return scalar(jax.checkpoint(lambda w, x: f(fill(w), *x, **keywords)))(w, x)

        return jax.jit(jax.grad(lambda w: jax.vmap(loss, in_axes=(None, 0))(w, stacked).sum()))

    values, fill = floats(variables)
    assert_same(per_example(apply)(values), per_example(same)(values))
    gradients = [
        jax.jit(jax.vmap(jax.grad(lambda w, x, f=f: scalar(f)(fill(w), *x, **keywords)), in_axes=(None, 0)))
        for f in (apply, same)
    ]
    assert_same(*(gradient(values, stacked) for gradient in gradients))


def test_compiles_to_the_same_program():
    """So it costs nothing at run time: XLA's optimised instructions are the same, renumbered."""

    def instructions(apply):
        text = re.sub(r", metadata=\{[^}]*\}", "", jax.jit(apply).lower(variables, *inputs).compile().as_text())
        names: dict[str, str] = {}
        body = text[min(place for place in (text.find("\n%"), text.find("\nENTRY")) if place >= 0) :]
        return re.sub(r"%[\w.\-]+", lambda found: names.setdefault(found.group(), f"%{len(names)}"), body)

    apply, variables, inputs, _ = MODELS["convnet train"]
    assert instructions(rewrite(apply, Interpreter)) == instructions(apply)


def test_eager_equals_jit():
    apply, variables, inputs, _ = MODELS["control flow"]
    for a, b in zip(rewrite(apply, Interpreter)(variables, *inputs), jax.jit(apply)(variables, *inputs)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_donated_and_sharded():
    apply, variables, inputs, _ = MODELS["convnet eval"]
    same = rewrite(apply, Interpreter)
    expected = jax.jit(apply)(variables, *inputs)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = jax.device_put(inputs[0], rows)
    held = jax.device_put(variables, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    out = jax.jit(same)(held, spread)
    assert out.sharding.is_equivalent_to(jax.jit(apply)(held, spread).sharding, out.ndim)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    state = jnp.ones((4, 4))
    donating = jax.jit(rewrite(lambda v, x: v["w"] * 2 + x.sum(), Interpreter), donate_argnums=1)
    np.testing.assert_array_equal(donating({"w": jnp.ones((4, 4))}, state), np.full((4, 4), 18.0))
    assert state.is_deleted()


def test_sharding_constraint_of_an_inner_jit_is_kept():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def apply(v, x):
        return jax.jit(lambda a: a @ v["w"], out_shardings=rows)(x)

    out = jax.jit(rewrite(apply, Interpreter))({"w": jnp.ones((3, 3))}, jnp.ones((4, 3)))
    assert out.sharding.is_equivalent_to(rows, 2)


def test_name_scopes_survive():
    def lowered(f):
        apply, variables, inputs, _ = MODELS["convnet eval"]
        traced = trace(rewrite(apply, Interpreter) if f else apply, variables, *inputs)
        return [
            (eqn.scope, eqn.primitive) for eqn in traced.equations() if eqn.primitive in ("conv_general_dilated", "dot_general")
        ]

    assert lowered(True) == lowered(False)
    assert ("ConvNet/Down", "conv_general_dilated") in lowered(True)


def test_derivative_of_relu_at_zero():
    same = rewrite(lambda v, x: jax.nn.relu(x) * v, Interpreter)
    assert jax.grad(lambda x: same(1.0, x).sum())(jnp.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_custom_rules_apply_handle_too():
    class Doubled(Interpreter):
        def handle(self, eqn, values):
            return [2 * self.bind(eqn, values)[0]] if eqn.primitive == "dot_general" else None

    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    doubled = rewrite(scaled, Doubled)
    np.testing.assert_array_equal(doubled(x, w), np.full((2, 4), 6.0))
    value, (dx, dw) = jax.value_and_grad(lambda x, w: doubled(x, w).sum(), argnums=(0, 1))(x, w)
    # The forward rule is rewritten; the backward rule stays the user's, with its half.
    assert float(value) == 48.0
    np.testing.assert_array_equal(dx, np.full((2, 3), 4.0))
    np.testing.assert_array_equal(dw, np.full((3, 4), 1.0))
    assert jax.grad(lambda x: rewrite(lambda v, x: clipped(x), Interpreter)(0.0, x).sum())(jnp.full(2, 3.0)).tolist() == [1, 1]


def test_bodies_at_other_shapes():
    """The graph of one shape, evaluated on values of another, keeps the user's derivative rules."""

    def apply(v, x):
        return jnp.sin(scaled(clipped(jax.nn.relu(x @ v["a"])), v["b"]))

    def sizes(n):
        keys = jax.random.split(jax.random.key(n), 2)
        return {"a": jax.random.normal(keys[0], (3, n)), "b": jax.random.normal(keys[1], (n, 2))}

    class Resized(Interpreter):
        """Fixes the shape that the derivative rules write out."""

        def handle(self, eqn, values):
            if eqn.primitive == "broadcast_in_dim" and eqn.params["shape"] == (2, 5):
                return self.bind(eqn, values, shape=(2, 3))
            return None

    x = jax.random.normal(jax.random.key(0), (2, 3))
    traced = trace(apply, sizes(5), x)
    small = sizes(3)

    def resized(v):
        return Resized(traced).run(traced.flatten(v, (x,), {}))[0]

    np.testing.assert_array_equal(resized(small), apply(small, x))
    assert_same(jax.grad(lambda v: resized(v).sum())(small), jax.grad(lambda v: apply(v, x).sum())(small))


def test_shared_inner_jaxpr():
    """Two call sites of one jitted function share one jaxpr; each has its own values."""
    inner = jax.jit(lambda a: a * 3)

    def apply(v, x):
        return inner(x) + inner(v)

    traced = trace(apply, jnp.float32(2), jnp.float32(5))
    calls = [eqn for eqn in traced.equations() if eqn.bodies]
    assert len(calls) == 2
    assert calls[0].bodies[0].jaxpr is calls[1].bodies[0].jaxpr
    assert len(set(traced.names.values())) == len(traced.names) == 5
    assert float(rewrite(apply, Interpreter)(jnp.float32(2), jnp.float32(5))) == 21


def test_emit_and_sites_in_a_scan():
    class Shifted(Interpreter):
        def handle(self, eqn, values):
            if eqn.primitive != "dot_general":
                return None
            out = self.bind(eqn, values)[0] + self.site(eqn)
            self.emit(self.name(eqn), out.mean())
            return [out]

    def apply(v, x):
        return jax.lax.scan(jax.checkpoint(lambda c, w: (c @ w, None)), x, v)[0]

    weights, x, shifts = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]), jnp.ones((1, 2)), jnp.array([10.0, 100.0])
    traced = trace(apply, weights, x)
    [name] = [n for n in traced.names.values() if n.startswith("checkpoint/dot_general") or n.endswith("dot_general")]
    interpreter = Shifted(traced, sites={name: shifts})
    [out] = interpreter.run([weights, x])
    assert out.tolist() == [[122.0, 122.0]]
    assert interpreter.emitted[name].tolist() == [11.0, 122.0]


def test_emit_in_cond_and_while():
    class Watched(Interpreter):
        def handle(self, eqn, values):
            if eqn.primitive == "sin":
                out = self.bind(eqn, values)
                self.emit("sin", out[0])
                return out
            return None

    def apply(v, x):
        return jax.lax.cond(v > 0, jnp.sin, jnp.cos, x)

    for v, expected in ((1.0, np.sin(np.float32(2.0))), (-1.0, 0.0)):
        watched = Watched(trace(apply, v, 2.0))
        watched.run([jnp.float32(v), jnp.float32(2.0)])
        np.testing.assert_allclose(watched.emitted["sin"], expected, rtol=1e-6)

    def loop(v, x):
        return jax.lax.while_loop(lambda c: c < v, lambda c: c + jnp.sin(c) + 1, x)

    with pytest.raises(ValueError, match="sin: no value can be handed out of a while loop"):
        Watched(trace(loop, 3.0, 1.0)).run([jnp.float32(3), jnp.float32(1)])


def test_a_body_that_changes_its_carry_says_so():
    class Half(Interpreter):
        def handle(self, eqn, values):
            return [self.bind(eqn, values)[0].astype(jnp.bfloat16)] if eqn.primitive == "dot_general" else None

    def apply(v, x):
        return jax.lax.scan(lambda c, _: (c @ v, None), x, None, length=2)[0]

    with pytest.raises(TypeError, match=r"scan at the top: .* carry 0, float32\(2, 2\); got bfloat16"):
        rewrite(apply, Half)(jnp.eye(2), jnp.eye(2))


def test_rewrites_compose():
    class Doubled(Interpreter):
        def handle(self, eqn, values):
            return [2 * self.bind(eqn, values)[0]] if eqn.primitive == "sin" else None

    twice = rewrite(rewrite(lambda v, x: jnp.sin(x) + v, Doubled), Doubled)
    np.testing.assert_allclose(twice(0.0, jnp.float32(1)), 4 * np.sin(np.float32(1)), rtol=1e-6)


def test_psum_inside_a_named_vmap():
    def apply(v, x):
        return x - jax.lax.pmean(x, "batch") * v

    x = jnp.arange(4.0)
    runs = [jax.vmap(f, in_axes=(None, 0), axis_name="batch")(1.0, x) for f in (apply, rewrite(apply, Interpreter))]
    assert_same(*runs)


def test_inner_gradient_with_remat():
    """A model that differentiates inside itself, through a checkpoint."""

    def apply(v, x):
        return jax.grad(lambda a: jax.checkpoint(lambda b: jnp.sin(b @ v))(a).sum())(x)

    v, x = jax.random.normal(jax.random.key(0), (3, 3)), jnp.ones((2, 3))
    np.testing.assert_allclose(rewrite(apply, Interpreter)(v, x), apply(v, x), rtol=1e-6)


def test_scan_operands_as_jax_0_11_names_them():
    """There a scan has `ft_in`, a tree that unpacks to (constants, carry, scanned), in place of two counts."""

    class Tree:
        def unpack(self):
            return (1, 2), (3,), (4, 5, 6)

    class Eqn:
        params = {"ft_in": Tree()}  # noqa: RUF012

    assert scan_counts(Eqn()) == (2, 1)


@pytest.mark.parametrize("version", ["0.9.2", "0.12.0", "1.0"])
def test_jax_out_of_range(version):
    with pytest.raises(ImportError, match=rf"needs jax >= 0.10 and < 0.12; got {version}"):
        check_version(version)


def test_control_flow_has_every_call():
    traced = trace(control_flow, MODELS["control flow"][1], *MODELS["control flow"][2])
    calls = {eqn.primitive for eqn in traced.equations() if eqn.bodies}
    assert {"cond", "scan", "while", "custom_jvp_call", "custom_vjp_call"} <= calls
