"""Programs of strangers: what could do more than compute is refused before jax reads it, and quickly."""

import contextlib
import dataclasses
import time

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.export import serialization_generated as schema
from jax._src.interpreters import mlir
from jax._src.lib import _jax
from jax._src.lib.mlir import ir

from lepton_jax import ArtifactError, load, save
from lepton_jax.artifact import program, read_apart
from lepton_jax.artifact.foreign_program import check_envelope, check_module

X = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def exported(f=jnp.linalg.cholesky, *shapes, platforms=("cpu",)):
    return export.export(jax.jit(f), platforms=platforms)(*(shapes or (X,)))


def bytecode(text: str) -> bytes:
    with mlir.make_ir_context():
        return bytes(_jax.mlir.serialize_portable_artifact(ir.Module.parse(text), "1.8.0"))


def with_module(module: bytes) -> bytes:
    return bytes(dataclasses.replace(exported(), mlir_module_serialized=module).serialize())


def changed(old: str, new: str) -> bytes:
    text = str(exported().mlir_module())
    assert old in text
    return with_module(bytecode(text.replace(old, new)))


HONEST = {
    "linear algebra": lambda x: (*jnp.linalg.svd(x), *jnp.linalg.qr(x), *jnp.linalg.eigh(x), jnp.linalg.solve(x, x)),
    "random bits": lambda x: x + jax.random.normal(jax.random.key(0), x.shape),
    "generator of the hardware": lambda x: x + jax.random.normal(jax.random.key(0, impl="rbg"), x.shape),
    "largest": lambda x: (*jax.lax.top_k(x, 2), *jax.lax.approx_max_k(x, 2), jnp.sort(x)),
    "loops": lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.cumsum(c[1], 0)), (0, x)),
    "special functions": lambda x: (jax.lax.erf(x), jax.scipy.special.i0e(x), jax.lax.digamma(x), jnp.arcsinh(x)),
    "platforms": lambda x: jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
    "names": lambda x: {"a": [x, (x, {"b": x})], "xla_python_cpu_callback": jnp.fft.fft(x).real},
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("symbolic", [False, True])
def test_what_jax_itself_writes_is_read_and_gives_the_same(name, symbolic):
    shape = export.symbolic_shape("b, 4") if symbolic and name not in ("linear algebra", "largest") else (4, 4)
    program_ = exported(HONEST[name], jax.ShapeDtypeStruct(shape, jnp.float32))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)
    x = x @ x.T + 4 * jnp.eye(4)
    found, wanted = program.deserialize(bytes(program_.serialize())).call(x), HONEST[name](x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize(
    "target",
    ["xla_python_cpu_callback", "xla_ffi_python_cpu_callback", "tpu_custom_call", "mosaic_gpu_v2", "tf.call_tf_function", "x"],
)
def test_functions_of_the_process_are_refused(target):
    with pytest.raises(ArtifactError, match=f"calls {target}, and a file may not"):
        program.deserialize(changed("@lapack_spotrf_ffi", f"@{target}"))


@pytest.mark.parametrize("text", ['"\\78\\6C\\61_python_cpu_callback"', "@xla_python_cpu_callback", "@lapack_spotrf_ffi"])
def test_text_is_refused_whatever_it_says(text):
    module = str(exported().mlir_module()).replace("@lapack_spotrf_ffi", text).encode()
    with pytest.raises(ArtifactError, match="no StableHLO bytecode"):
        program.deserialize(with_module(module))


@pytest.mark.parametrize("operation", ["infeed", "outfeed", "send", "recv"])
def test_transfers_are_refused(operation):
    token = "%t = stablehlo.create_token : !stablehlo.token"
    channel = "channel_handle = #stablehlo.channel_handle<handle = 1, type = 2>, is_host_transfer = true"
    lines = {
        "infeed": '%r:2 = "stablehlo.infeed"(%t) : (!stablehlo.token) -> (tensor<4x4xf32>, !stablehlo.token)',
        "outfeed": '%r = "stablehlo.outfeed"(%arg0, %t) : (tensor<4x4xf32>, !stablehlo.token) -> !stablehlo.token',
        "send": f'%r = "stablehlo.send"(%arg0, %t) {{{channel}}} : (tensor<4x4xf32>, !stablehlo.token) -> !stablehlo.token',
        "recv": f'%r:2 = "stablehlo.recv"(%t) {{{channel.replace("type = 2", "type = 3")}}} : (!stablehlo.token) -> '
        "(tensor<4x4xf32>, !stablehlo.token)",
    }
    module = f"""func.func public @main(%arg0: tensor<4x4xf32>) -> tensor<4x4xf32> {{
        {token}
        {lines[operation]}
        return %arg0 : tensor<4x4xf32>
    }}"""
    with pytest.raises(ArtifactError, match=f"stablehlo.{operation}"):
        check_module(bytecode(module))


@pytest.mark.parametrize("shape", ["1099511627776xf32", "1048576x1048576xi8", "4294967296x4294967296x4294967296xf64"])
def test_a_value_larger_than_memory_is_refused(shape):
    module = f"""func.func public @main() -> tensor<{shape}> {{
        %0 = stablehlo.constant dense<0{".0" if "f" in shape else ""}> : tensor<{shape}>
        return %0 : tensor<{shape}>
    }}"""
    with pytest.raises(ArtifactError, match="makes a value of"):
        check_module(bytecode(module))


def doubled(levels: int) -> bytes:
    """Trees whose two children are one table: 2**levels leaves in a few hundred bytes."""
    builder = flatbuffers.Builder(1024)

    def node(children):
        if children:
            schema.PyTreeDefStartChildrenVector(builder, len(children))
            for child in children:
                builder.PrependUOffsetTRelative(child)
            children = builder.EndVector()
        schema.PyTreeDefStart(builder)
        schema.PyTreeDefAddKind(builder, schema.PyTreeDefKind.tuple if children else schema.PyTreeDefKind.leaf)
        if children:
            schema.PyTreeDefAddChildren(builder, children)
        return schema.PyTreeDefEnd(builder)

    tree = node([])
    for _ in range(levels):
        tree = node([tree, tree])
    schema.ExportedStart(builder)
    schema.ExportedAddNrDevices(builder, 1)
    schema.ExportedAddInTree(builder, tree)
    schema.ExportedAddOutTree(builder, tree)
    builder.Finish(schema.ExportedEnd(builder))
    return bytes(builder.Output())


@pytest.mark.parametrize("levels", [20, 60, 100])
def test_tables_that_are_read_again_and_again_are_refused_at_once(levels):
    data, start = doubled(levels), time.perf_counter()
    with pytest.raises(ArtifactError, match=r"more elements than it has bytes|nested deeper"):
        program.deserialize(data)
    assert len(data) < 4000
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("seed", range(4))
def test_damaged_envelopes_are_refused_or_read_within_a_second(seed):
    rng, honest = np.random.default_rng(seed), bytes(exported(lambda x: x + 1).serialize())
    for _ in range(250):
        data = bytearray(honest)
        for place in rng.integers(0, len(data), rng.integers(1, 6)):
            data[place] = rng.integers(256)
        start = time.process_time()
        with contextlib.suppress(ArtifactError):
            check_envelope(bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data))
        assert time.process_time() - start < 1


def test_several_devices_and_derivatives_are_refused():
    two = dataclasses.replace(exported(), nr_devices=2)
    with pytest.raises(ArtifactError, match="single device"):
        program.deserialize(bytes(two.serialize()))
    with pytest.raises(ArtifactError, match="derivative"):
        program.deserialize(bytes(exported(jnp.sin).serialize(vjp_order=1)))


def test_what_ends_the_process_that_reads_it_is_refused(monkeypatch):
    data = with_module(exported(lambda x: x + 1).mlir_module_serialized)
    monkeypatch.setattr(read_apart, "_CHILD", "import os, sys; sys.stdin.buffer.read(); os.abort()")
    read_apart.read_apart.cache_clear()
    with pytest.raises(ArtifactError, match="reading it ended the process that tried"):
        program.deserialize(data)
    monkeypatch.setattr(read_apart.sys, "executable", "/nowhere/python")
    with pytest.raises(ArtifactError, match=r"cannot be read in a process of its own: .*nowhere"):
        program.deserialize(data)


def test_bytecode_damaged_in_its_types_is_refused_whatever_it_does_to_its_reader():
    """Every byte of some stretches: among them are those that have written beyond the reader's memory."""
    module = exported(lambda x: jax.lax.top_k(x, 2)).mlir_module_serialized
    rng, said = np.random.default_rng(0), []
    for place in rng.choice(len(module) // 2, 6, replace=False):
        damaged = bytearray(module)
        damaged[place] ^= 1 << int(rng.integers(8))
        try:
            read_apart.read_apart(bytes(damaged))
        except ArtifactError as error:
            said.append(str(error))
    assert said
    assert not any("\n" in one for one in said)


def test_only_programs_of_others_are_read_apart(monkeypatch, tmp_path):
    """What a process wrote itself it need not read with another's help; what it wrote is the same after that."""
    seen = []
    monkeypatch.setattr(program, "read_apart", lambda module: seen.append(module) or read_apart.read_apart(module))
    save(tmp_path / "m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(4)}, jnp.ones((1, 4)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    own = load(tmp_path / "m.lepton")(x)
    assert not seen
    program._WRITTEN.clear()
    again = load(tmp_path / "m.lepton")(x)
    assert len(seen) == 1
    np.testing.assert_array_equal(own, again)


def test_names_that_are_no_text_are_refused():
    """Found among the hostile files: a damaged letter of the name of what is called."""
    module = exported().mlir_module_serialized
    assert b"lapack_spotrf_ffi" in module
    with pytest.raises(ArtifactError, match=r"the program (cannot be read|calls)"):
        check_module(module.replace(b"lapack_spotrf_ffi", b"lapack_\xff\xfeotrf_ffi"))
