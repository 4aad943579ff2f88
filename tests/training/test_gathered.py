"""What a step gathers under FSDP, counted in the compiled program; and that few bits change nothing but what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lepton_jax import cast, chain, fake_quant, identity, low_rank, pack, prune, unpack
from lepton_jax.core import paths
from lepton_jax.training import (
    Placement,
    collectives,
    create,
    data_mesh,
    fsdp,
    gathered,
    make_train_step,
    sent_table,
    shard_step,
)
from lepton_jax.training.collectives import Collective

SIZES = [(128, 256), (256, 256), (256, 16)]
SMALL = [(128, 32), (32, 16), (16, 16)]


def params_of(seed, sizes=SIZES):
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    layers = [{"kernel": jax.random.normal(key, size) / 16, "bias": jnp.zeros(size[1])} for key, size in zip(keys, sizes)]
    return {f"l{place}": layer for place, layer in enumerate(layers)}


def loss_fn(params, model_state, batch, key):
    x = batch["x"]
    for place in range(len(SIZES)):
        layer = params[f"l{place}"]
        x = (jnp.tanh(x) if place else x) @ layer["kernel"] + layer["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(x, batch["y"]).mean(), (model_state, {})


def batch_at(number):
    rng = np.random.default_rng(number)
    return {"x": rng.normal(size=(64, 128)).astype(np.float32), "y": rng.integers(0, 16, 64).astype(np.int32)}


def counted(transform, placement):
    """Compile a step; return what goes between the devices."""
    tx = optax.adam(1e-2)
    state = create(params_of(0), {}, tx, transform, jax.random.key(1), placement=placement)
    lies = jax.tree.map(lambda leaf: leaf.sharding, state)
    rows = NamedSharding(placement.mesh, P(placement.batch_axis))
    step = jax.jit(make_train_step(loss_fn, tx, transform), in_shardings=(lies, rows), out_shardings=(lies, None))
    return collectives(step.lower(state, batch_at(0)).compile())


def by_dtype(found, kind):
    sums = {}
    for one in found:
        if one.kind == kind:
            sums[one.dtype] = sums.get(one.dtype, 0) + one.bytes
    return sums


def test_fsdp_gathers_a_quarter_of_the_bytes():
    placement = fsdp(data_mesh())
    floats = sum(4 * rows * columns for rows, columns in SIZES)
    plain = counted(gathered(identity(), placement, bits=32), placement)
    assert by_dtype(plain, "all-gather") == {"f32": floats}
    halves = counted(gathered(identity(), placement, bits=16), placement)
    assert by_dtype(halves, "all-gather") == {"u16": floats // 2}  # bfloat16, as integers
    assert set(by_dtype(halves, "all-reduce")) == {"f32"}, "gradients come back in float32"
    for transform in (identity(), prune(0.9, scope="global")):
        codes = by_dtype(counted(gathered(transform, placement), placement), "all-gather")
        assert codes["s8"] == floats // 4
        assert sum(codes.values()) <= 0.26 * floats, codes


def test_factors_are_gathered_and_not_their_product():
    placement = fsdp(data_mesh())
    found = counted(gathered(low_rank(8), placement), placement)
    assert max(one.bytes for one in found if one.kind == "all-gather") <= 4 * 8 * 256


TRANSFORMS = {
    "identity": identity,
    "prune": lambda: prune(0.7, scope="global"),
    "low_rank": lambda: low_rank(4),
    "int4>cast": lambda: chain(fake_quant(4), cast("bfloat16")),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_the_view_is_that_of_one_device_bit_for_bit(name, bits):
    placement, transform = fsdp(data_mesh()), TRANSFORMS[name]()
    several, few = gathered(transform, placement, bits=bits), gathered(transform, fsdp(data_mesh(jax.devices()[:1])), bits=bits)
    tx = optax.sgd(0.1)
    state = create(params_of(2, SMALL), {}, tx, several, jax.random.key(1), placement=placement)
    host = jax.device_get((state.params, state.tstate))
    seen = jax.jit(several.view)(state.params, state.tstate)
    alone = jax.jit(few.view)(*host)
    assert jax.tree.structure(seen) == jax.tree.structure(params_of(2, SMALL))
    for (path, a), b in zip(paths.flatten(seen).items(), jax.tree.leaves(alone)):
        assert a.dtype == b.dtype
        if name == "low_rank" and path.endswith("kernel"):  # a product: sums may be taken in another order
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32), err_msg=path)
    if bits == 8:
        plain = chain(transform, fake_quant(8))
        jax.tree.map(np.testing.assert_array_equal, alone, jax.jit(plain.view)(*host))
    packed = unpack(pack(few, *host))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), packed, few.view(*host))


def test_it_trains_as_one_device_does():
    tx, runs = optax.adam(1e-2), []
    for devices in (jax.devices()[:1], jax.devices()):
        placement = fsdp(data_mesh(devices))
        transform = gathered(prune(0.8, scope="global"), placement)
        state = create(params_of(4, SMALL), {}, tx, transform, jax.random.key(1), placement=placement)
        step, losses = shard_step(make_train_step(loss_fn, tx, transform), placement.mesh), []
        for number in range(4):
            state, metrics = step(state, batch_at(number))
            losses.append(float(metrics["loss"]))
        runs.append((losses, jax.device_get(state.tstate[0].masks)))
    np.testing.assert_allclose(runs[0][0], runs[1][0], rtol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, runs[0][1], runs[1][1])


def test_gradients_are_straight_through_and_spread():
    placement = fsdp(data_mesh())
    transform = gathered(identity(), placement)
    params, state = transform.init(placement.place({"w": jnp.ones((8, 4)) + jnp.arange(8.0)[:, None]}))
    slopes = jax.jit(jax.grad(lambda p: jnp.sum(transform.view(p, state)["w"] * jnp.arange(4.0)[None])))(params)
    np.testing.assert_array_equal(slopes["w"], np.tile(np.arange(4.0), (8, 1)))


def test_axes_of_tensor_parallel_stay():
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    placement = Placement(mesh, {"*/kernel": P("data", "model")})
    found = counted(gathered(identity(), placement), placement)
    codes = [one for one in found if one.dtype == "s8"]
    assert sorted(one.shape for one in codes) == sorted((rows, columns // 2) for rows, columns in SIZES)
    assert {(one.kind, one.devices) for one in codes} == {("all-gather", 2)}


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match=r"gathered: bits must be 8 .*; got 4"):
        gathered(identity(), fsdp(data_mesh()), bits=4)
    mesh = data_mesh()
    odd = gathered(identity(), Placement(mesh, {"w": P("data")}))
    with pytest.raises(ValueError, match=r"w: axis 0 of \(6, 4\) is not a multiple of the 4 devices"):
        odd.view({"w": jnp.ones((6, 4))}, ((), ()))


LINES = {
    "  %a = s8[8,4]{1,0} all-gather(s8[2,4]{1,0} %q), replica_groups={{0,1,2,3}}, dimensions={0}": ("s8", (8, 4), 4, 32, 24.0),
    "  %a = f32[6]{0} all-reduce(%q), replica_groups=[2,2]<=[4], to_apply=%sum": ("f32", (6,), 2, 24, 24.0),
    "  %a = bf16[2]{0} reduce-scatter(%q), replica_groups=mesh['x'=2,'y'=4] {'y'}": ("bf16", (2,), 4, 16, 12.0),
    "  %a = pred[] all-reduce(%q), replica_groups=mesh['x'=2,'y'=4] {'x', 'y':(1)2}": ("pred", (), 4, 1, 1.5),
    "  %a = (f32[2]{0}, f32[8]{0}) all-gather-start(%q), replica_groups={{0,1,2,3},{4,5,6,7}}": ("f32", (8,), 4, 32, 24.0),
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_a_program_is_read(line):
    [found] = collectives(line)
    assert (found.dtype, found.shape, found.devices, found.bytes, found.sent) == LINES[line]


def test_results_in_a_tuple_are_one_each_and_uses_are_none():
    text = "  %r = (f32[], s32[3]{0}) all-reduce(%a, %b), replica_groups={{0,1}}\n  %g = f32[] get-tuple-element(%all-reduce.3)"
    assert [one.dtype for one in collectives(text)] == ["f32", "s32"]
    table = sent_table([Collective("all-reduce", "f32", (3,), 4, 12)] * 2)
    assert table.split() == ["all-reduce", "f32", "2", "24", "bytes", "36", "bytes", "sent"]
