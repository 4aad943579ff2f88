"""A placed run gives the masks of one device, keeps every leaf where its weight lies, and refuses what cannot be spread."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from lepton_jax import chain, fake_quant, low_rank, prune
from lepton_jax.core import paths, schedules
from lepton_jax.distillation import Distill, LogitTerm, Outputs, TaughtBatch, distill
from lepton_jax.lowrank import TrainSvd, Tucker2, lora
from lepton_jax.pruning.sparse_training import masked_moments, rigl
from lepton_jax.quantization import lsq
from lepton_jax.training import (
    Checkpoints,
    FitSettings,
    Placement,
    create,
    data_mesh,
    fit,
    fsdp,
    make_evaluate,
    make_train_step,
    replicated,
    tensor_parallel,
)


def apply(params, x):
    return jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]


def loss_fn(params, model_state, batch, key):
    loss = optax.softmax_cross_entropy_with_integer_labels(apply(params, batch["x"]), batch["y"]).mean()
    return loss, (model_state, {})


def params_of(seed):
    one, two = jax.random.split(jax.random.key(seed))
    first = {"kernel": jax.random.normal(one, (8, 16)), "bias": jnp.zeros(16)}
    return {"a": first, "b": {"kernel": jax.random.normal(two, (16, 4))}}


def batch_at(number):
    rng = np.random.default_rng(number)
    return {"x": rng.normal(size=(8, 8)).astype(np.float32), "y": rng.integers(0, 4, 8).astype(np.int32)}


def square():
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def placements():
    x = jnp.ones((8, 8))
    return {
        "fsdp": fsdp(data_mesh()),
        "tensor": tensor_parallel(square(), apply, params_of(0), x),
        "both": Placement(square(), {"a/kernel": P("data", "model"), "b/kernel": P("model", "data")}),
    }


def train(transform, tx, placement, steps=4, **options):
    state = create(params_of(3), {}, tx, transform, jax.random.key(5), placement=placement)
    step = make_train_step(loss_fn, tx, transform)
    return fit(state, step, batch_at, FitSettings(steps=steps, progress=False), placement=placement, **options)


def bits(tree):
    return {path: np.asarray(leaf) for path, leaf in paths.flatten(tree).items() if leaf.dtype == bool}


TRANSFORMS = {
    "prune+quant": lambda: chain(prune(schedules.polynomial(0.7, begin=1, end=3), scope="global"), fake_quant(bits=4)),
    "rigl": lambda: rigl(0.5, jax.random.key(1), end=10, interval=2),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_masks_are_those_of_one_device(name):
    tx = masked_moments(optax.adam(1e-2)) if name == "rigl" else optax.adam(1e-2)
    transform = TRANSFORMS[name]()
    one = train(transform, tx, None)
    masks = bits(one.tstate)
    assert any(not mask.all() for mask in masks.values())
    for placement in [found for at, found in placements().items() if at == "fsdp" or (name != "rigl" and at == "both")]:
        state = train(transform, tx, placement)
        jax.tree.map(np.testing.assert_array_equal, bits(state.tstate), masks)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.params, one.params)
        wanted = placement.shardings(state, params_of(3))
        for path, leaf in paths.flatten(state).items():
            assert leaf.sharding.is_equivalent_to(paths.flatten(wanted)[path], leaf.ndim), path


def spec(leaf):
    return tuple(leaf.sharding.spec) + (None,) * (leaf.ndim - len(leaf.sharding.spec))


CASES = {  # of a kernel (8, 8) or (3, 3, 4, 8): what lies where when it is spread over inputs, and over outputs
    "low_rank": (
        lambda: low_rank(2),
        {"d/kernel/u": ("data", None), "c/kernel/u": ("data", None)},
        {"d/kernel/v": (None, "data")},
    ),
    "lora": (lambda: lora(2, jax.random.key(0)), {"d/kernel/u": ("data", None)}, {"base/d/kernel": (None, "data")}),
    "lsq": (lambda: lsq(4), {"mu/d/kernel": ("data", None)}, {"d/kernel/step": ("data",), "c/kernel/step": ("data",)}),
    "prune": (lambda: prune(0.5), {"masks/d/kernel": ("data", None)}, {"mu/c/kernel": (None, None, None, "data")}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_belongs_to_a_weight_lies_as_the_weight(name):
    make, over_inputs, over_outputs = CASES[name]
    keys = jax.random.split(jax.random.key(7))
    params = {"d": {"kernel": jax.random.normal(keys[0], (8, 8))}, "c": {"kernel": jax.random.normal(keys[1], (3, 3, 4, 8))}}
    for specs, expected in (
        ({"d/*": P("data", None), "c/*": P(None, None, "data")}, over_inputs),
        ({"d/*": P(None, "data"), "c/*": P(None, None, None, "data")}, over_outputs),
    ):
        state = create(params, {}, optax.adam(1e-2), make(), jax.random.key(0), placement=Placement(data_mesh(), specs))
        plain = create(params, {}, optax.adam(1e-2), make(), jax.random.key(0))
        assert jax.tree.structure(state) == jax.tree.structure(plain)
        found = {path: spec(leaf) for path, leaf in paths.flatten(state).items()}
        for path, lies in expected.items():
            assert {found[at] for at in found if at.endswith("/" + path)} == {lies}, path
        for path in ("d/kernel/u", "d/kernel/v"):  # of a square kernel only one factor holds the axis
            other = {"d/kernel/u": over_outputs, "d/kernel/v": over_inputs}[path]
            if name == "low_rank" and expected is other:
                assert found[f"params/{path}"] == (None, None)


@pytest.mark.parametrize("method", [Tucker2(), TrainSvd()], ids=["tucker", "train"])
def test_factors_of_a_convolution_hold_the_spread_axis(method):
    params = {"c": {"kernel": jax.random.normal(jax.random.key(2), (3, 3, 8, 16))}}
    for axis in (2, 3):
        placement = Placement(data_mesh(), {"c/*": P(*(None,) * axis, "data")})
        state = create(params, {}, optax.sgd(0.1), low_rank(4, method=method), jax.random.key(0), placement=placement)
        spread = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
        assert len(spread) >= 1
        assert all(params["c"]["kernel"].shape[axis] in leaf.shape for leaf in spread), [leaf.shape for leaf in spread]


def test_a_run_goes_on_with_other_devices(tmp_path):
    """Saved on four devices, spread; restored on two, on one, on four in another way: the same bits, and it trains on."""
    tx, transform = optax.sgd(1e-2, 0.9), prune(schedules.polynomial(0.7, begin=1, end=3))
    with Checkpoints(tmp_path, run="a") as checkpoints:
        state = train(transform, tx, fsdp(data_mesh()), checkpoints=checkpoints)
        for placement in (
            fsdp(data_mesh(jax.devices()[:2])),
            None,
            tensor_parallel(square(), apply, params_of(0), jnp.ones((8, 8))),
        ):
            again = create(params_of(9), {}, tx, transform, jax.random.key(5), placement=placement)
            restored, _ = checkpoints.restore(again)
            jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
            jax.tree.map(np.testing.assert_array_equal, restored.tstate, state.tstate)
            for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(again)):
                assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
                assert a.dtype == b.dtype
    with Checkpoints(tmp_path, run="a") as checkpoints:
        on = train(transform, tx, fsdp(data_mesh(jax.devices()[:2])), steps=6, checkpoints=checkpoints, resume=True)
    whole = train(transform, tx, None, steps=6)
    jax.tree.map(np.testing.assert_array_equal, bits(on.tstate), bits(whole.tstate))
    assert on.params["a"]["kernel"].sharding.num_devices == 2


@pytest.mark.parametrize("placement", [None, "fsdp", "both"])
def test_a_run_is_one_compiled_program(placement, tmp_path):
    """The loss is traced once for a run that logs, saves and is resumed in the same process by the same step."""
    traced, tx, transform = [], optax.adam(1e-2), TRANSFORMS["prune+quant"]()

    def counted(*args):
        traced.append(1)
        return loss_fn(*args)

    at = None if placement is None else placements()[placement]
    step = make_train_step(counted, tx, transform)
    for steps in (6, 12):
        state = create(params_of(3), {}, tx, transform, jax.random.key(5), placement=at)
        settings = FitSettings(steps=steps, log_every=2, checkpoint_every=3, progress=False)
        with Checkpoints(tmp_path, run="a") as checkpoints:
            state = fit(state, step, batch_at, settings, checkpoints=checkpoints, resume=True, placement=at)
    assert int(state.step) == 12
    assert len(traced) == 1


def test_distillation_and_evaluation_take_a_placement():
    params = {"Dense_0": {"kernel": jax.random.normal(jax.random.key(0), (8, 4))}}

    def model(params, model_state, x, *, train, key):
        return x @ params["Dense_0"]["kernel"], model_state

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(8, 8)).astype(np.float32), rng.integers(0, 4, 8)
    batch = TaughtBatch(x, y, np.ones(8, bool), Outputs(rng.normal(size=(8, 4)).astype(np.float32), {}))
    placement, steps = Placement(data_mesh(), {"*/kernel": P("data", None)}), FitSettings(steps=2, progress=False)
    figures = []
    for at in (None, placement):
        history = []
        evaluate = make_evaluate(model, prune(0.5), [batch], placement=at)
        terms = Distill(terms=(LogitTerm(),))
        options = {"tx": optax.sgd(0.1), "key": jax.random.key(1), "transform": prune(0.5)}
        state = distill(
            model, params, {}, lambda _: batch, terms, steps, placement=at, evaluate=evaluate, history=history, **options
        )
        figures.append(history[-1])
    assert state.params["Dense_0"]["kernel"].sharding.spec == P("data", None)
    assert figures[0]["error"] == figures[1]["error"]
    assert figures[0]["sparsity"] == figures[1]["sparsity"] == 0.5
    np.testing.assert_allclose(figures[0]["loss"], figures[1]["loss"], rtol=1e-5)


def test_what_cannot_be_spread_is_refused_at_once():
    mesh, params = data_mesh(), params_of(0)
    with pytest.raises(ValueError, match=r"a/kernel: .*names 'modle', which it lacks"):
        Placement(mesh, {"a/kernel": P("modle")})
    with pytest.raises(ValueError, match="batch: 'rows' is not one"):
        Placement(mesh, {}, "rows")
    odd = {"a": jnp.ones((6, 4)), "b": jnp.ones((4, 5)), "c": jnp.ones(4)}
    placement = Placement(mesh, {"a": P("data"), "b": P(None, "data"), "c": P(None, "data"), "d*": P("data")})
    with pytest.raises(ValueError, match="choose axes that divide") as error:
        create(odd, {}, optax.sgd(0.1), prune(0.5), jax.random.key(0), placement=placement)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["a", "b", "c", "d*"]
    assert "axis 0 of (6, 4) is not a multiple of the 4 devices of 'data'" in lines[1]
    assert set(replicated(mesh).weights(odd).values()) == {P()}
    with pytest.raises(ValueError, match="fsdp: axis must be one of the mesh"):
        fsdp(mesh, axis="rows")
    with pytest.raises(ValueError, match="tensor_parallel: axis"):
        tensor_parallel(mesh, apply, params, jnp.ones((8, 8)))


def test_the_table_says_how_each_leaf_lies():
    placement = Placement(square(), {"a/kernel": P(("data", "model"), None)})
    state = create(params_of(0), {}, optax.sgd(0.1), prune(0.5), jax.random.key(0), placement=placement)
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in placement.table(state).splitlines()}
    assert lines["params/a/kernel"] == f"float32[8,16] data and model, whole {8 * 16 * 4 // 4} bytes a device"
    assert lines["tstate/masks/a/kernel"] == f"bool[8,16] data and model, whole {8 * 16 // 4} bytes a device"
    assert lines["params/b/kernel"] == f"float32[16,4] whole {16 * 4 * 4} bytes a device"
    assert len(lines) == len(jax.tree.leaves(state))
