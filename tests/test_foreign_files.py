"""Files of strangers: refused in the documented way, or read right; within a second and a little memory."""

import io
import json
import os
import struct
import time
import tracemalloc
import zipfile
import zlib

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import zstandard

from experiments.hostile import apart
from experiments.hostile.judged import Outcome
from experiments.hostile.readers import KINDS, shares
from lepton_jax import load, save
from lepton_jax.artifact import ArtifactError, container
from lepton_jax.coding.streams import Writer
from lepton_jax.command_line import main
from lepton_jax.core.limits import most_turns
from lepton_jax.data.compressed import open_dataset, write_dataset
from lepton_jax.interchange import (
    load_npz,
    load_orbax,
    load_resnet20,
    load_safetensors,
    load_variables,
    save_npz,
    save_safetensors,
)
from lepton_jax.leaves import Sparse, TensorTrain
from lepton_jax.quantization import Uniform, quantize
from lepton_jax.training import Checkpoints

FILES = int(os.environ.get("LEPTON_HOSTILE_FILES", "5000"))
"""So many over all readers; `python -m experiments.benchmarks.hostile_files` reads a hundred thousand."""


def outcomes_of(kind, folder):
    """Of this kind's share, one file after another."""
    cases = range(shares(FILES)[kind])
    if KINDS[kind].apart:
        return list(apart.outcomes(kind, 1, cases))
    return [(case, KINDS[kind].attempt(folder, 1, case)) for case in cases]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # loops that orbax leaves when it fails
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files(kind, tmp_path):
    outcomes = outcomes_of(kind, tmp_path)
    wrong = [(case, outcome.what, outcome.wrong) for case, outcome in outcomes if outcome.wrong]
    assert not wrong, wrong[:5]
    refused = sum(outcome.refused for _, outcome in outcomes)
    assert kind.startswith("command") or refused > len(outcomes) / 10
    if kind == "lepton":  # changes under right checksums may load; under wrong ones none does
        loaded = {outcome.what for _, outcome in outcomes if not outcome.refused}
        assert loaded >= {"head", "manifest", "json", "specs", "tensors"}
        assert "truncated" not in loaded


def test_a_process_that_dies_or_hangs_is_an_outcome(monkeypatch, tmp_path):
    """The fourth file ends it."""
    fake = tmp_path / "experiments" / "hostile"
    fake.mkdir(parents=True)
    (fake.parent / "__init__.py").touch()
    (fake / "__init__.py").touch()
    lines = ["import json, os, sys", "first = int(sys.argv[sys.argv.index('--first') + 1])"]
    lines += ["for case in range(first, 6):", "    if case == 3: os.kill(os.getpid(), 11)"]
    lines += ["    print(json.dumps(['what', True, '', 0.5, 7]), flush=True)"]
    (fake / "apart.py").write_text("\n".join(lines))
    monkeypatch.setattr(apart, "ROOT", tmp_path)
    found = list(apart.outcomes("programs", 0, range(6)))
    assert [case for case, _ in found] == list(range(6))
    assert [outcome.wrong for _, outcome in found] == ["", "", "", "the process ended by SIGSEGV", "", ""]
    assert found[5][1] == Outcome("what", True, "", 0.5, 7)


def assert_refused(read, match, kind=ValueError, megabytes=64):
    """Reading must end in an error of this kind that matches, at once and without much memory."""
    begin = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=match) as caught:
            read()
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < 1
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 5000


def zstd(data):
    return zstandard.ZstdCompressor(3, write_content_size=False).compress(data)


def write_set(path, about, shared=b"", blocks=(), examples=1, block=1):
    """A data set of one array, with right checksums."""
    index = Writer()
    index.block(shared)
    for stream in blocks:
        index.number(len(stream))
        index.put(zlib.crc32(stream).to_bytes(4, "little"))
    manifest = json.dumps({"examples": examples, "block": block, "arrays": {"a": about}}).encode()
    inner = container.build(manifest, b"", bytes(index.data))
    path.write_bytes(b"\x93LPD\1\0" + len(inner).to_bytes(4, "little") + inner + b"".join(blocks))
    return path


def basis(patch, length, rank):
    writer = Writer()
    for number in (patch, length, rank):
        writer.number(number)
    writer.put(np.float32(1).tobytes() + b"\2")
    writer.block(zstd(bytes(4 * length + 2 * length * rank)))
    return bytes(writer.data)


IMAGES = {"codec": "patch_pca", "dtype": "uint8"}


def test_a_basis_that_unfolds_is_refused(tmp_path):
    path = write_set(tmp_path / "s", {**IMAGES, "shape": [64, 64, 3]}, basis(64, 12288, 12288), [b""])
    assert_refused(lambda: open_dataset(path), "a: a basis of 12288 components .* bytes declared", ArtifactError)


def test_patches_of_single_pixels_are_refused(tmp_path):
    count = 4_000_000
    path = write_set(tmp_path / "s", {**IMAGES, "shape": [1, 1, 1]}, basis(8, 64, 64), [b"\1\0" * 24], count, count)
    assert_refused(lambda: open_dataset(path)[0], "4000000 patches of 64 numbers, 64 coefficients", ArtifactError)


def median(shape):
    count = int(np.prod(shape))
    writer = Writer()
    writer.put(bytes([4, 0, 2]))
    writer.block(zstd(bytes([2]) + bytes(count - 1)))
    return {"codec": "lossless", "dtype": "uint8", "shape": shape}, bytes(writer.data)


def test_a_median_filter_on_one_line_is_fast_and_on_two_long_ones_refused(tmp_path):
    about, stream = median([1, 1_000_000])
    begin = time.process_time()
    with open_dataset(write_set(tmp_path / "s", about, blocks=[stream])) as data:
        assert (data[0]["a"] == 1).all()
    assert time.process_time() - begin < 1
    about, stream = median([2, 500_000])
    path = write_set(tmp_path / "s", about, blocks=[stream])
    assert_refused(lambda: open_dataset(path)[0], "the filter median .* turns of slow decoding", ArtifactError)


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"codec": "lossless", "dtype": "int1", "shape": []}, "dtype 'int1' is not one of plain numbers"),
        ({"codec": "lossless", "dtype": "uint8", "shape": [1] * 40}, "are not possible"),
        ({"codec": "lossless", "dtype": "uint8", "shape": [True]}, "are not possible"),
        ({"codec": "lossless", "dtype": "uint8", "shape": [0, 1 << 60]}, "are not possible"),
        ({"codec": "lossless", "dtype": "uint8", "shape": [], "mse": "none"}, "its figure mse is none"),
        ({"codec": "lossless", "dtype": "uint8", "shape": [], "chosen": [1]}, r"its figure chosen is \[1\]"),
        ([], "damaged, or of a newer version"),
    ],
)
def test_heads_of_data_sets_are_checked_before_they_are_used(about, match, tmp_path):
    path = write_set(tmp_path / "s", about, blocks=[b""])
    assert_refused(lambda: open_dataset(path), match, ArtifactError)


def test_a_block_that_could_not_be_read_is_not_written(tmp_path):
    zeros = np.zeros((40, 1 << 20), np.uint8)
    with pytest.raises(ArtifactError, match="cannot write x in blocks of 40, give a smaller block"):
        write_dataset(tmp_path / "s", {"x": zeros}, block=40)
    write_dataset(tmp_path / "s", {"x": zeros}, block=4)
    with open_dataset(tmp_path / "s") as data:
        assert not data[39]["x"].any()


def npy(header, data=b""):
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def write_npz(path, entries, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


GOOD = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
NPZ = {
    "objects": ([("a.npy", npy(GOOD.replace(b"<f4", b"|O"), bytes(8)))], r"the entry a is of \|O"),
    "texts": ([("a.npy", npy(GOOD.replace(b"<f4", b"<U9"), bytes(72)))], "the entry a is of <U9, not of numbers"),
    "open_text": ([("a.npy", npy(b"{'descr': '''"))], "a has a damaged header"),
    "deep": ([("a.npy", npy(b"(" * 3000))], "a has a damaged header"),
    "long": ([("a.npy", npy(b" " * 60_000))], "a begins like no array"),
    "size": ([("a.npy", npy(GOOD.replace(b"2", b"1000000000"), bytes(8)))], "4000000000 bytes, and has 8"),
    "shape": ([("a.npy", npy(GOOD.replace(b"(2,)", b"(0, 99999999999999999999)")))], "a shape that is not possible"),
    "bytes": ([("a.npy", npy(GOOD, bytes(8))), ("readme.txt", b"hello")], r"the entry readme\.txt is no array"),
    "flag": ([("a.npy", npy(GOOD.replace(b"<f4", b"|b1"), b"\1\2"))], "a: a flag is neither 0 nor 1"),
    "about": ([("__lepton__.npy", npy(GOOD.replace(b"<f4", b"|u1"), b"[]"))], "__lepton__ is no JSON object"),
    "long_name": ([("x" * 60_000 + ".npy", b"")], r"xxx\.\.\.xxx.* \(60000 characters\)"),
    "escapes": ([("\x1b[2J.npy", b"")], r"the entry \\x1b\[2J"),
}


@pytest.mark.parametrize("name", NPZ)
def test_npz_files_of_strangers(name, tmp_path):
    entries, match = NPZ[name]
    path = write_npz(tmp_path / "w.npz", entries)
    assert_refused(lambda: load_npz(path), match)


def test_two_entries_of_one_name_and_foreign_ways_of_coding(tmp_path):
    data = npy(GOOD, bytes(8))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_npz(tmp_path / "w.npz", [("a.npy", data), ("a.npy", data)])
    assert_refused(lambda: load_npz(path), "two entries are called a")
    path = write_npz(tmp_path / "w.npz", [("a.npy", data)], zipfile.ZIP_LZMA)
    assert_refused(lambda: load_npz(path), "the entry a is encrypted or not of deflate")
    locked = bytearray(write_npz(tmp_path / "w.npz", [("a.npy", data)]).read_bytes())
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.index(mark) + at] |= 1
    path.write_bytes(bytes(locked))
    assert_refused(lambda: load_npz(path), "the entry a is encrypted")


def test_fortran_order_and_big_ends_come_back_right(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez_compressed(tmp_path / "w.npz", a=array, b=array.astype(">i4"))
    found = load_npz(tmp_path / "w.npz")
    np.testing.assert_array_equal(found["a"], array)
    assert (found["b"].dtype, found["b"].tolist()) == (np.dtype(np.int32), array.tolist())
    assert found["a"].flags.writeable


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SAFETENSORS = {
    "none": (None, "is described by None"),
    "dtype": ({**TENSOR, "dtype": "F6_E2M3"}, "numpy has no such dtypes: w: F6_E2M3"),
    "no_dtype": ({**TENSOR, "dtype": ["F32"]}, "is described by"),
    "negative": ({**TENSOR, "shape": [-2]}, "is described by"),
    "large": ({**TENSOR, "shape": [1 << 40]}, "the tensor w of 4398046511104 bytes has 8"),
    "endless": ({**TENSOR, "shape": [0, 1 << 62]}, "is described by"),
    "hole": ({**TENSOR, "shape": [1], "data_offsets": [4, 8]}, "begins at 4, the one before ends at 0"),
    "backwards": ({**TENSOR, "data_offsets": [8, 0]}, "is described by"),
    "beyond": ({**TENSOR, "data_offsets": [0, 1 << 40]}, "its tensors end at"),
    "flag": ({"dtype": "BOOL", "shape": [8], "data_offsets": [0, 8]}, "a flag is neither 0 nor 1"),
}


def write_safetensors(path, header, data=b"\2" * 8):
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_of_strangers(name, tmp_path):
    entry, match = SAFETENSORS[name]
    path = write_safetensors(tmp_path / "w.safetensors", json.dumps({"w": entry}).encode())
    assert_refused(lambda: load_safetensors(path), match)
    assert_refused(lambda: load_resnet20(path), match)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b'{"w":1,"w":2}', "a key stands twice in one object: w"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "no JSON object"),
        (b'{"__metadata__":{"lepton_structure":7}}', "its metadata are no texts"),
        (b'{"__metadata__":{"lepton_structure":"[[["}}', "structure is damaged|its tensors end"),
        (json.dumps({"\x1b]0;x\x07" * 2 + "k" * (1 << 20): 1}).encode(), r"\\x1b\]0;x\\x07.* \(1048588 characters\)"),
    ],
)
def test_headers_of_safetensors(header, match, tmp_path):
    path = write_safetensors(tmp_path / "w.safetensors", header, b"")
    assert_refused(lambda: load_safetensors(path), match)
    path.write_bytes(struct.pack("<Q", 1 << 63) + b"{}")
    assert_refused(lambda: load_safetensors(path), "a header of 9223372036854775808 bytes in a file of 10")


READERS = {"m.lepton": load, "w.npz": load_npz, "w.safetensors": load_safetensors, "s.lepd": open_dataset}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(name, tmp_path):
    read, path = READERS[name], tmp_path / name
    path.mkdir()
    assert_refused(lambda: read(path), f"{name} is a folder; give a file")
    path.rmdir()
    os.mkfifo(path)
    assert_refused(lambda: read(path), f"{name} is a pipe, a device or a socket; give a file")
    path.unlink()
    path.touch()
    assert_refused(lambda: read(path), name)
    path.unlink()
    path.symlink_to(path)
    assert_refused(lambda: read(path), name, (ValueError, OSError))


def test_checkpoints_of_strangers(tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(7, {"w": np.ones(2, np.float32)})
    [about] = (tmp_path / "run").rglob("_METADATA")
    good = about.read_bytes()
    for text, match in ((b"[" * 100_000, "is not JSON"), (b"", "is not JSON"), (b"{}", "no whole orbax checkpoint")):
        about.write_bytes(text)
        assert_refused(lambda: load_orbax(tmp_path / "run"), match)
    about.write_bytes(good)
    (about.parent / "link").symlink_to("/etc/hostname")
    assert_refused(lambda: load_orbax(tmp_path / "run"), "link is neither a file nor a folder")
    (about.parent / "link").unlink()
    os.mkfifo(about.parent / "pipe")
    assert_refused(lambda: load_orbax(tmp_path / "run"), "pipe is neither a file nor a folder")
    (about.parent / "pipe").unlink()
    assert load_orbax(tmp_path / "run")["w"].tolist() == [1, 1]
    (tmp_path / "run" / ("9" * 200)).mkdir()
    assert load_orbax(tmp_path / "run")["w"].tolist() == [1, 1]


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "a\0b", "C:x", "..\\x"])
def test_names_that_lead_elsewhere_are_not_written(name, tmp_path):
    tree = {name: np.ones(1, np.float32)}
    for save_, path in ((save_npz, tmp_path / "w.npz"), (save_safetensors, tmp_path / "w.safetensors")):
        with pytest.raises(ValueError, match="a name of a place outside, or with a character 0; rename the key"):
            save_(path, tree)
    save(tmp_path / "m.lepton", lambda v, x: x + v[name], tree, jnp.ones(1))
    assert main(["unpack", str(tmp_path / "m.lepton"), str(tmp_path / "w.npz")]) == 2
    assert os.listdir(tmp_path) == ["m.lepton"]


def test_commands_show_no_escapes(tmp_path, capsys):
    name, path = "\x1b[2J\x9b\u202e" + "k" * 1000, str(tmp_path / "m.lepton")
    save(path, lambda v, x: x + v[name], {name: np.ones(1, np.float32)}, jnp.ones(1), recipe={name: name})
    save_npz(tmp_path / "w.npz", {name: np.ones(2, np.float32)})
    for words in (["inspect", path], ["inspect", path, "--json"], ["diff", path, str(tmp_path / "w.npz")], ["verify", path]):
        assert main(words) in (0, 1)
        said = capsys.readouterr()
        assert (said.out + said.err).replace("\n", "").isprintable()
        assert words[-1] == "--json" or max(map(len, said.out.split("\n"))) < 2500
    assert main(["inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"][0]["path"] == name


@pytest.mark.parametrize("dtype", ["int1", "uint1", "float6_e2m3fn", "float6_e3m2fn"])
def test_dtypes_that_jax_lacks_are_refused_by_name(dtype, tmp_path):
    array = np.zeros(2, getattr(ml_dtypes, dtype))
    with pytest.raises(ArtifactError, match=f"cannot save w: dtype '{dtype}' is not one of plain numbers"):
        save(tmp_path / "m.lepton", lambda v, x: x, {"w": array}, jnp.ones(1))
    assert not os.listdir(tmp_path)


def test_parts_that_do_not_fit_are_not_saved(tmp_path):
    train = TensorTrain((jnp.ones((1, 2, 2)), jnp.ones((3, 3, 1))), (2, 3))
    with pytest.raises(ArtifactError, match="cannot save w: its parts do not fit"):
        save(tmp_path / "m.lepton", lambda v, x: x, {"w": train}, jnp.ones(1))
    assert not os.listdir(tmp_path)


def test_a_model_of_many_slow_streams_is_saved_so_that_it_loads_at_once(tmp_path):
    rng = np.random.default_rng(0)
    sparse = {str(i): np.where(rng.random((128, 128)) < 0.02, rng.integers(-7, 8, (128, 128)), 0) for i in range(14)}
    packed = {name: quantize(jnp.asarray(w, jnp.float32), Uniform(bits=4)) for name, w in sparse.items()}
    save(tmp_path / "m.lepton", lambda v, x: x + v["3"], packed, jnp.ones((1, 128)), axes={})
    begin = time.process_time()
    found = load(tmp_path / "m.lepton")
    assert time.process_time() - begin < 1
    for name, leaf in packed.items():
        np.testing.assert_array_equal(found.variables[name], leaf.unpack())


@pytest.mark.parametrize("value", [1e30, 3e38, np.inf, np.nan, 65504.0, 65520.0])
def test_no_warning_leaks_from_values_that_few_bits_cannot_hold(value, tmp_path):
    """Warnings are errors here: of a value that overflows in the 16 bits that are tried, on saving and on loading."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(16, 8)).astype(np.float32)
    dense[0, 0] = value
    holes = np.where(rng.random((16, 8)) < 0.2, dense, 0).astype(np.float32)
    holes[0, 0] = value
    tree = {"dense": dense, "holes": holes, "same": np.full(9, value, np.float32), "brain": jnp.asarray(dense, jnp.bfloat16)}
    tree |= {"sparse": Sparse.from_dense(jnp.asarray(holes)), "double": dense.astype(np.float64)}
    save(tmp_path / "m.lepton", lambda v, x: x, tree, jnp.ones(1))
    found = load(tmp_path / "m.lepton")
    str(found.account())
    for name in ("dense", "holes", "same"):
        np.testing.assert_array_equal(found.variables[name], tree[name])
    np.testing.assert_array_equal(found.variables["sparse"], holes)


def test_work_is_counted_over_all_of_a_file():
    assert most_turns(3000) < 100_000


def test_load_variables_refuses_as_its_readers_do(tmp_path):
    path = write_npz(tmp_path / "w.npz", [("a.npy", npy(b"{'descr': '''"))])
    assert_refused(lambda: load_variables(path), "w.npz is no whole npz file of plain arrays: the entry a has a damaged header")


def test_inputs_of_commands(tmp_path, capsys):
    save(tmp_path / "m.lepton", lambda v, x: x + v["w"][None], {"w": jnp.ones(2)}, jnp.ones((1, 2)))
    for data in (b"", npy(b"{'descr': '''"), npy(GOOD.replace(b"2", b"1000000000"))):
        (tmp_path / "x.npy").write_bytes(data)
        assert main(["run", str(tmp_path / "m.lepton"), "--input", str(tmp_path / "x.npy")]) == 2
        assert "is no .npy file of a plain array" in capsys.readouterr().err
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 2), np.float32))
    (tmp_path / "x.npy").write_bytes(buffer.getvalue())
    assert main(["run", str(tmp_path / "m.lepton"), "--input", str(tmp_path / "x.npy")]) == 0
