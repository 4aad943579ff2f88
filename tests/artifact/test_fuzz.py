"""Hostile files: each ends in ArtifactError, which says where, or in an exact load; soon, and in little memory."""

import json
import tracemalloc

import jax
import numpy as np
import pytest
from jax import export

from experiments.hostile.lepton_files import good_files, seal
from lepton_jax.artifact import ArtifactError, load
from lepton_jax.coding import arrays, compression, rans, sparse_index, streams, symbols
from lepton_jax.coding.streams import Writer

POSITIONS, SYMBOLS = sparse_index.CODERS.index, symbols.CODERS.index
HOLES, CONSTANT = bytes([SYMBOLS("holes"), 0, 1]), bytes([SYMBOLS("constant"), 0])
# An empty table of values, and 256 codes into it.
TABLE = b"\0\1\0" + bytes([arrays.CODERS.index("empty")]) + b"\xff"
LONG = 4_000_000
varint = streams.varint


def sure_symbol(lanes):
    """A stream of asymmetric numerals that costs nothing a symbol."""
    writer = Writer()
    rans.write_table(writer, np.array([1 << 16] + [0] * 255))
    return bytes(writer.data) + varint(lanes) + varint(0) + (1 << 31).to_bytes(8, "little") * lanes


def positions(name, *rest, lag=1):
    return bytes([SYMBOLS("holes"), 0]) + varint(lag) + bytes([POSITIONS(name)]) + b"".join(rest)


def write(path, tree, tensors, program=b"p"):
    manifest = tree if isinstance(tree, bytes) else json.dumps({"tree": tree}).encode()
    path.write_bytes(seal([(0, data, len(data)) for data in (manifest, program, tensors)]))


def assert_refused(path, match, megabytes=256):
    """Loading must end in an ArtifactError that matches, without taking much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=match):
            load(path)
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


def test_the_good_files_hold_every_coder_and_kind_of_leaf(tmp_path):
    coders, kinds = set(), set()
    for good in good_files():
        (tmp_path / "f").write_bytes(good.file)
        for _, spec, _, used in load(tmp_path / "f")._parts.tensors:
            coders |= set(used)
            kinds.add(spec.kind_name)
    assert coders == {*arrays.CODERS, *symbols.CODERS, *sparse_index.CODERS}
    assert kinds == {"array", "codebook", "quantized", "sparse", "key"}


BOMBS = {
    "many_elements": ("1000000,1000000", b"\0", "bytes of dense weights declared.* tensor w: 1000000,1000000"),
    "an_empty_axis_and_a_long_one": ("s 0,99999999999", positions("rows", b"\1\0"), "bytes of dense weights declared"),
    "context_in_no_bytes": (f"s {LONG // 100},100", positions("context", b"\0"), "cannot be coded by context|in 0 bytes"),
    "a_tall_mask_in_no_bytes": (f"s {1 << 17},1", positions("context", b"\0"), "in 0 bytes declared near offset"),
    "a_square_mask_in_no_bytes": ("s 500,500", positions("context", b"\0"), "too large for its coder|was read to|in 0 bytes"),
    "rows_in_no_bytes": ("s 2000,2000", positions("rows", b"\1\0"), "in 0 bytes declared near offset"),
    "rows_of_a_large_mask": (
        "s 2000,2000",
        positions("rows", b"\1", varint(3000), bytes(3000)),
        "turns of slow decoding in all",
    ),
    "rows_of_a_mask_that_takes_over_a_second": (
        "s 1250,1250",
        positions("rows", b"\1", varint(3000), bytes(3000)),
        "turns of slow decoding in all",
    ),
    "a_far_neighbour": (f"s 1,{LONG}", positions("rows", b"\1\0", lag=4096), "a neighbour 4096 rows before"),
    "gaps": (f"s 4,{LONG // 4}", positions("gaps", varint(LONG), b"\0", CONSTANT), "turns of slow decoding in all, more than"),
    "more_gaps_than_places": ("s 4,4", positions("gaps", varint(10**9), b"\0", CONSTANT), "1000000000 distances declared"),
    "groups": (f"s 4,{LONG // 4}", positions("groups", bytes([2, 4, 1]), CONSTANT), "bytes of tables declared at offset"),
    "one_lane": (f"c8 {LONG}", TABLE + bytes([SYMBOLS("rans")]) + sure_symbol(1), "in 1 lanes and 0 words declared"),
    "mixing_in_no_bytes": ("c8 32768", TABLE + bytes([SYMBOLS("mixing")]) + b"\0", "32768 symbols in 0 bytes declared"),
    "long_stream_of_few_bytes": ("c8 9", TABLE + bytes([SYMBOLS("mixing")]) + varint(10**12), "1000000000000 bytes"),
    "sparse_in_sparse": ("1", bytes([arrays.CODERS.index("sparse"), 1, POSITIONS("bits"), 1]) * 4000, "coder sparse cannot"),
    "a_large_table": ("c2 4", b"\0\1" + varint(10**10) + b"\0", "shape .10000000000,. declared near offset"),
    "many_axes": ("c2 4", b"\0" + varint(10**9) + b"\1" * 40, "declared near offset"),
    "more_codes_than_bits": ("c2 4", TABLE[:-1] + b"\x07" + CONSTANT, "for 8 codes"),
    "a_false_flag": ("3 bool", bytes([arrays.CODERS.index("raw"), 1, 2, 0]), "a flag is neither 0 nor 1"),
    "scales_of_another_shape": ("q4,1,99 6,4", (b"\0\2\1\7" + b"\0" * 29) * 2, "scales of shapes|cannot hold|declared"),
    "an_axis_that_is_not_there": ("q4,1,7 2", (b"\0\1\1\0" + b"\0" * 4 + b"\3\1\1\0" + b"\0" * 5 + b"\0"), "channel_axis=7"),
    "compressed": ("4000000", bytes([arrays.CODERS.index("compressed"), 2, 3]) + b"abc", "cannot be decompressed"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_memory_or_time_is_refused_first(name, tmp_path):
    text, tensors, match = BOMBS[name]
    write(tmp_path / "f", {"w": text}, tensors)
    assert_refused(tmp_path / "f", match)


def test_a_tensor_that_costs_nothing_is_allowed_only_to_a_limit(tmp_path):
    """All zeros take a few bytes, truly; the limit is on what they unfold to, and the caller's to raise."""
    write(tmp_path / "f", {"w": f"c8 {LONG}"}, TABLE + CONSTANT)
    assert not np.asarray(load(tmp_path / "f").variables["w"]).any()
    write(tmp_path / "f", {"w": f"c8 {2 * LONG}"}, TABLE + CONSTANT)
    assert_refused(tmp_path / "f", "more than the 16777216 allowed.* max_bytes", megabytes=1)
    assert load(tmp_path / "f", max_bytes=1 << 25).packed["w"].shape == (2 * LONG,)
    with pytest.raises(ArtifactError, match="more than the 1000 allowed"):
        load(tmp_path / "f", max_bytes=1000)


@pytest.mark.parametrize("codec", range(1, 4))
@pytest.mark.parametrize("section", range(3))
def test_compressed_sections_that_unfold_are_refused(codec, section, tmp_path):
    zeros = bytes(1 << 22)
    stored = {
        1: compression._deflate(zeros),
        2: compression.zstandard.ZstdCompressor(19).compress(zeros),
        3: compression.lzma.compress(zeros, format=compression.lzma.FORMAT_RAW, filters=compression._lzma(1 << 30)),
    }[codec]
    for size, match in (
        (1 << 30, r"declares 1073741824 bytes; \d+ are allowed"),
        (1 << 20, "declares 1048576 bytes but holds"),
    ):
        parts = [(0, b'{"tree":{}}', 11), (0, b"p", 1), (0, b"", 0)]
        parts[section] = (codec, stored, size)
        (tmp_path / "f").write_bytes(seal(parts))
        assert_refused(tmp_path / "f", match, megabytes=40)


MANIFESTS = {
    "deep": (b'{"tree":' + b"[0," * 100_000 + b"1" + b"]" * 100_000 + b"}", "is not JSON|deeper than"),
    "deep_unread": (b'{"tree":{},"metrics":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is not JSON"),
    "twice": (b'{"tree":{"w":"1","w":"1"}}', "a key stands twice"),
    "not_a_number": (b'{"tree":"1","metrics":{"error":NaN}}', "NaN is no finite number"),
    "infinite": (b'{"tree":"1","metrics":{"error":-Infinity}}', "-Infinity is no finite number"),
    "overflow": (b'{"tree":"1","metrics":{"error":1e999}}', "1e999 is no finite number"),
    "long_number": (b'{"tree":"1","native":' + b"9" * 5000 + b"}", "is not JSON"),
    "batch": (b'{"tree":"1","batch":3}', "'batch' is of type int"),
    "recipe": (b'{"tree":"1","recipe":[]}', "'recipe' is of type list"),
    "metrics": (b'{"tree":"1","metrics":"good"}', "'metrics' is of type str"),
    "bytes": (b"\xff\xfe{}", "is not JSON"),
    "more_leaves_than_bytes": (b'{"tree":[0' + b',"1"' * 500_000 + b"]}", "tensor "),
    "number_as_leaf": (b'{"tree":{"w":7}}', "the tree is damaged at w"),
    "true_as_kind": (b'{"tree":[true,"1"]}', "the tree is damaged"),
    "key_twice": (b'{"tree":[2,1,"1",1,"1"]}', "the tree is damaged"),
    "key_of_two_types": (b'{"tree":[2,1,"1","a","1"]}', "the tree is damaged"),
    "factors": (b'{"tree":[3,[9],"1","1"]}', "make no tensor of shape"),
    "no_factors": (b'{"tree":[3,[9],{},{}]}', "are no arrays"),
    "digits": (b'{"tree":"' + b"9" * 5000 + b'"}', "does not describe a leaf"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifests(name, tmp_path):
    manifest, match = MANIFESTS[name]
    ones = b"\0" + np.ones(1, np.float32).tobytes()
    write(tmp_path / "f", manifest, b"" if name == "no_factors" else 2 * ones if "key" in name or "factors" in name else ones)
    assert_refused(tmp_path / "f", match)


def test_a_long_manifest_is_refused_before_it_is_read(tmp_path):
    manifest = b'{"tree":{},"recipe":{"x":"' + b"x" * (1 << 22) + b'"}}'
    write(tmp_path / "f", manifest, b"")
    assert_refused(tmp_path / "f", r"the manifest at offset \d+ declares \d+ bytes; 4194304 are allowed")


def test_a_file_of_zeros_without_end_is_not_read(tmp_path):
    with open(tmp_path / "f", "wb") as file:
        file.truncate(1 << 40)
    assert_refused(tmp_path / "f", "not a .lepton file", megabytes=1)
    good = good_files()[1].file
    with open(tmp_path / "g", "wb") as file:
        file.write(good)
        file.truncate(1 << 40)
    assert_refused(tmp_path / "g", f"ends at offset {len(good)}, the file does at {1 << 40}", megabytes=1)


def test_bytes_that_are_no_program_are_an_error_when_it_is_first_needed(tmp_path):
    ones = b"\0" + np.ones(1, np.float32).tobytes()
    write(tmp_path / "f", {"w": "1"}, ones, program=bytes(range(200)))
    artifact = load(tmp_path / "f")
    with pytest.raises(ArtifactError, match="the program cannot be read"):
        artifact(jax.numpy.ones(1))


def test_a_program_that_calls_python_is_refused(tmp_path):
    struct, name = jax.ShapeDtypeStruct((1,), np.float32), "xla_ffi_python_cpu_callback"

    def forged(weights, x):
        return jax.ffi.ffi_call(name, struct)(x, index=np.uint64(7)) + weights[0]

    allowed = [export.DisabledSafetyCheck.custom_call(name)]
    code = export.export(jax.jit(forged), platforms=["cpu"], disabled_checks=allowed)([struct], struct).serialize()
    write(tmp_path / "f", {"w": "1"}, b"\0" + np.ones(1, np.float32).tobytes(), program=bytes(code))
    artifact = load(tmp_path / "f")
    with pytest.raises(ArtifactError, match=f"the program calls {name}, and a file may not"):
        artifact(np.ones(1, np.float32))
