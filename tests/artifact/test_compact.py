"""A shorter program is the same program."""

import hashlib
import lzma
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from lepton_jax import load, save
from lepton_jax.artifact import account, compact
from lepton_jax.artifact.program import PLATFORMS, export_program, serialize
from lepton_jax.coding.compression import compress, decompress
from lepton_jax.models import LeNet300
from lepton_jax.quantization import Uniform, quantize

(B,) = export.symbolic_shape("b")


def network(w, x):
    def twice(x):
        return jax.nn.gelu(x @ w["square"])

    shared = jax.jit(twice)
    return jnp.sort(shared(shared(x)), axis=-1) @ w["out"]


def loops(w, x):
    x, kept = lax.scan(lambda c, k: (jnp.tanh(c @ k), c.sum(-1)), x, w["stack"])
    x = lax.while_loop(lambda c: jnp.all(jnp.abs(c) > 1e-2), lambda c: c / 2, x)
    return jnp.where(x > 0, x, 0) + kept.sum(0)[:, None] + jax.random.normal(jax.random.key(3), (6,))[None, :]


def choices(w, x):
    """Branches that are alike but for what they see outside, or for one attribute, or that are equal."""
    index = jnp.int32(jnp.abs(x[0, 0]) * 10) % 3
    a, b, c = x @ w["square"], x * 2, x - 1
    outside = lax.switch(index, [lambda: a, lambda: b, lambda: c])
    inside = lax.switch(index, [lambda x: x.sum(0), lambda x: x.sum(0) * 1, lambda x: x.prod(0)], x)
    compared = lax.switch(index, [lambda x: x > 0, lambda x: x >= 0, lambda x: x < 0], jnp.round(x))
    nested = lax.cond(
        index > 1, lambda: lax.cond(index > 0, lambda: a, lambda: b), lambda: lax.cond(index > 0, lambda: b, lambda: a)
    )
    return outside + inside[None, :] + compared + nested + lax.switch(index, [jnp.sin, jnp.sin, jnp.sin], x)


def calls(w, x):
    """What jax does by calls of libraries, and kinds of numbers that are rare."""
    square = jnp.einsum("bi,bj->ij", x, x) + 9 * jnp.eye(6)
    few = x.astype(jnp.int4).astype(jnp.float32) + x.astype(jnp.float8_e4m3fn).astype(jnp.float32)
    top, _ = lax.top_k(x, 2)
    solved = jnp.linalg.cholesky(square).sum() + jnp.linalg.eigh(square)[0].sum() + jnp.linalg.qr(square)[1].sum()
    return (
        few + top.sum(1)[:, None] + solved + jnp.fft.rfft(x).real.sum(1)[:, None] + lax.optimization_barrier(jnp.cumsum(x, 1))
    )


@pytest.fixture
def weights():
    rng = np.random.default_rng(11)
    shapes = {"square": (6, 6), "out": (6, 4), "stack": (5, 6, 6)}
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("platforms", [("cpu",), PLATFORMS])
@pytest.mark.parametrize("rows", [7, B], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("function", [network, loops, choices, calls])
def test_every_bit_is_as_before(function, rows, platforms, weights):
    made = export.export(jax.jit(function), platforms=platforms)(weights, jax.ShapeDtypeStruct((rows, 6), jnp.float32))
    short = export.deserialize(bytearray(compact.compact(made).serialize()))
    assert len(short.mlir_module_serialized) < len(made.mlir_module_serialized)
    for one in ("in_avals", "out_avals", "platforms", "in_tree", "out_tree"):
        assert str(getattr(short, one)) == str(getattr(made, one))
    for seed in range(6):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(7 if rows == 7 else 3 + seed, 6)), jnp.float32)
        np.testing.assert_array_equal(jax.jit(short.call)(weights, x), jax.jit(made.call)(weights, x))


def test_what_is_alike_is_merged_and_what_is_not_stays():
    made = export.export(jax.jit(lambda x: x @ x), platforms=PLATFORMS)(jax.ShapeDtypeStruct((B, B), jnp.float32))
    assert made.mlir_module().count("stablehlo.dot_general") == 3
    assert compact.compact(made).mlir_module().count("stablehlo.dot_general") == 1
    different = export.export(
        jax.jit(lambda x: lax.platform_dependent(x, cpu=jnp.sin, cuda=jnp.cos, default=jnp.tan)), platforms=PLATFORMS
    )(jnp.ones(3))
    text = compact.compact(different).mlir_module()
    assert all(f"stablehlo.{name}" in text for name in ("sine", "cosine", "tan"))
    np.testing.assert_array_equal(compact.compact(different).call(jnp.arange(3.0)), jnp.sin(jnp.arange(3.0)))


def test_a_function_that_is_called_twice_is_written_once(weights):
    made = export.export(jax.jit(network))(weights, jnp.ones((2, 6)))
    text = compact.compact(made).mlir_module()
    assert text.count("call @twice") == 2
    assert text.count("func.func private @twice") == 1
    assert "func.func private @gelu" not in text


def test_wrong_lengths_are_still_refused(weights, tmp_path):
    save(tmp_path / "m.lepton", network, weights, jnp.ones((2, 6)))
    with pytest.raises(ValueError, match="do not fit the program"):
        load(tmp_path / "m.lepton")(jnp.ones((2, 5)))


@pytest.mark.parametrize("lowering", [True, False])
def test_lengths_that_are_not_what_was_said_are_refused(lowering, tmp_path):
    """Equal names are equal lengths, whatever was said holds, and an axis has at least one index."""

    def apply(w, x, y):
        return (x * w).sum(1) + y.sum(1)

    x, axes = jnp.ones((2, 4)), [{0: "batch", 1: "time"}, {0: "batch", 1: "time"}]
    save(tmp_path / "said.lepton", apply, jnp.ones(()), x, x, axes=axes, constraints=("time <= 6", "time >= 2"))
    save(tmp_path / "free.lepton", apply, jnp.ones(()), x, x, axes=axes)
    for name, refused in {"said": [(3, 7), (3, 1)], "free": []}.items():
        model = load(tmp_path / f"{name}.lepton", lowering=lowering)
        np.testing.assert_array_equal(model(jnp.ones((3, 5)), jnp.ones((3, 5))), jnp.full(3, 10.0))
        for call in (model, lambda *inputs, model=model: jax.jit(model.apply)(model.variables, *inputs)):
            for shape in refused:
                with pytest.raises(ValueError, match=r"time|refining shapes"):
                    call(jnp.ones(shape), jnp.ones(shape))
            for other in ((3, 4), (2, 5)):
                with pytest.raises(ValueError, match=r"do not fit|[Ii]nput shapes|refine"):
                    call(jnp.ones((3, 5)), jnp.ones(other))


def test_the_dictionary_is_the_one_that_files_were_written_with():
    words = lzma.decompress(resources.files("lepton_jax.coding").joinpath("programs.xz").read_bytes())
    assert hashlib.sha256(words).hexdigest() == "b3568b2f10fe453c5b4aee57296d5c792752b8b8e3e2d4b6be9d841506b22c9a"


def test_a_small_program_takes_a_few_hundred_bytes(tmp_path):
    model, x = LeNet300(hidden=(33, 17)), jnp.ones((2, 5, 5, 1))
    variables = model.init(jax.random.key(0), x)
    save(tmp_path / "m.lepton", model.apply, variables, x)
    assert account(tmp_path / "m.lepton").program < 400
    np.testing.assert_array_equal(load(tmp_path / "m.lepton")(x), jax.jit(model.apply)(variables, x))


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_the_coder_of_programs_gives_back_any_bytes(count):
    data = np.random.default_rng(count).integers(0, 256, count).astype(np.uint8).tobytes()
    codec, stored = compress(data, program=True)
    assert decompress(codec, stored, count) == data
    program = serialize(export_program(lambda v, x: x @ v, jnp.ones((3, 2)), (jnp.ones((4, 3)),)).exported)
    codec, stored = compress(program, program=True)
    assert len(stored) < 0.6 * len(compress(program)[1])
    assert decompress(codec, stored, len(program)) == program


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_a_packed_table_takes_any_number_of_rows(bits, tmp_path):
    """The program that runs packed leaves has a free batch where it looks rows up."""
    table = quantize(jnp.asarray(np.random.default_rng(bits).normal(size=(30, 8)), jnp.float32), Uniform(bits=bits))
    save(tmp_path / "m.lepton", lambda v, x: jnp.take(v, x, axis=0).sum(1), table, jnp.zeros((2, 5), jnp.int32), native=True)
    ids = np.random.default_rng(0).integers(0, 30, (9, 5))
    expected = np.asarray(table.unpack(), np.float64)[ids].sum(1)
    np.testing.assert_allclose(load(tmp_path / "m.lepton").native()(jnp.asarray(ids)), expected, rtol=1e-5, atol=1e-5)
