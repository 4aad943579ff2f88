"""Safetensors and npz: any tree comes back, files of others open, what does not fit is named."""

import json
import struct
from collections import namedtuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lepton_jax.interchange import load_npz, load_safetensors, load_variables, save_npz, save_safetensors
from lepton_jax.quantization import Uniform, quantize

FORMATS = {
    "safetensors": (save_safetensors, load_safetensors, "w.safetensors"),
    "npz": (save_npz, load_npz, "w.npz"),
}
both = pytest.mark.parametrize(("save", "load", "name"), FORMATS.values(), ids=FORMATS.keys())


def tree():
    rng = np.random.default_rng(3)
    nan = np.array([0x7FC00001, 0x80000000, 0xFF800000], np.uint32).view(np.float32)  # a NaN's payload, -0, -inf
    return {
        "params": {"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16), "bias": nan}},
        "stats": [np.int8([1, -2]), (np.array(True), np.float16(0.5), ()), []],
        "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
        "empty": np.zeros((0, 3), np.uint16),
        "numbers": {"flag": False, "count": 3, "rate": 0.1},
        "mapping": {2: np.int64([2**40]), 7: None},
        "fp8": np.asarray([1.5, -2.0], ml_dtypes.float8_e4m3fn),
        "file": np.uint32([1]),
    }


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        if isinstance(b, (bool, int, float)):
            assert (type(a), a) == (type(b), b)
        else:
            assert (a.dtype, a.shape) == (np.asarray(b).dtype, b.shape)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@both
def test_any_tree_comes_back_bit_for_bit_in_its_structure(save, load, name, tmp_path):
    save(tmp_path / name, tree())
    found = load(tmp_path / name)
    assert_same(found, tree())
    assert_same(load(tmp_path / name, tree()), tree())
    assert isinstance(found["stats"][1], tuple)
    save(tmp_path / name, np.float32(7))  # a tree that is one leaf, over a file that is there
    assert load(tmp_path / name) == np.float32(7)


@both
def test_keys_modules_and_packed_leaves(save, load, name, tmp_path):
    packed = quantize(jnp.arange(6.0).reshape(2, 3), Uniform(bits=4))
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    pair = namedtuple("Pair", "left right")(np.ones(1), np.zeros(1))
    save(tmp_path / name, {"key": jax.random.key(5), "w": packed, "state": state, "pair": pair})
    found = load(tmp_path / name)
    assert jax.random.key_data(found["key"]).tolist() == [0, 5]
    np.testing.assert_array_equal(found["w"], packed.unpack())
    np.testing.assert_array_equal(found["state"]["kernel"], state["kernel"][...])
    template = {"key": jax.random.key(0), "w": packed, "state": state, "pair": pair}
    again = load(tmp_path / name, template)
    assert type(again["pair"]) is type(pair)
    np.testing.assert_array_equal(again["state"]["kernel"][...], state["kernel"][...])
    assert jax.random.key_data(again["key"]).tolist() == [0, 5]


@both
def test_what_does_not_fit_a_template_is_named_all_at_once(save, load, name, tmp_path):
    save(tmp_path / name, {"a": np.ones((2, 3), np.float32), "b": np.ones(2, np.int8), "more": np.ones(1, np.float32)})
    wanted = {"a": jax.ShapeDtypeStruct((3, 2), np.float32), "b": np.ones(2, np.int16), "lost": 1.0}
    with pytest.raises(ValueError, match=r"names, shapes and dtypes") as caught:
        load(tmp_path / name, wanted)
    assert str(caught.value).splitlines()[1:] == [
        "  a: needs float32[3,2], the file has float32[2,3]",
        "  b: needs int16[2], the file has int8[2]",
        "  lost: needs float64[], not in the file",
        "  more: float32[1] in the file, not asked for",
    ]


@both
def test_what_cannot_be_saved_is_named_and_nothing_is_written(save, load, name, tmp_path):
    with pytest.raises(ValueError, match=r"a/b: two leaves of this name[\s\S]*c: must be an array or a number; got str"):
        save(tmp_path / name, {"a": {"b": 1}, "a/b": 2, "c": "text"})
    assert not (tmp_path / name).exists()


def test_safetensors_says_which_dtypes_it_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"no such dtypes: w: complex128\. Convert them, or save as \.npz"):
        save_safetensors(tmp_path / "w.safetensors", {"w": np.ones(1, np.complex128)})


def test_the_files_are_what_others_read(tmp_path):
    expected = {"a": {"b": np.float32([[1, 2]])}, "c": [np.int32([3])]}
    save_safetensors(tmp_path / "w.safetensors", expected)
    read = load_file(tmp_path / "w.safetensors")
    assert {name: array.tolist() for name, array in read.items()} == {"a/b": [[1.0, 2.0]], "c/0": [3]}
    save_npz(tmp_path / "w.npz", expected)
    with np.load(tmp_path / "w.npz", allow_pickle=False) as archive:
        assert archive["a/b"].tolist() == [[1.0, 2.0]]
        assert archive["c/0"].tolist() == [3]


def test_the_files_of_others_open(tmp_path):
    arrays = {"layer/w": np.float32([1, 2]), "layer/b": np.float16([3]), "conv1.weight": np.ones((2, 2), np.int64)}
    expected = {"conv1.weight": arrays["conv1.weight"], "layer": {"b": arrays["layer/b"], "w": arrays["layer/w"]}}
    save_file(arrays, tmp_path / "w.safetensors", metadata={"format": "pt"})
    np.savez(tmp_path / "w.npz", **arrays)
    for name in ("w.safetensors", "w.npz"):
        assert_same(load_variables(tmp_path / name), expected)


def test_a_file_made_by_hand(tmp_path):
    header = json.dumps({"x/y": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\x80\x3f\x40\xc0")
    found = load_safetensors(tmp_path / "w.safetensors")["x"]["y"]
    assert (found.dtype.name, found.tolist()) == ("bfloat16", [1.0, -3.0])


def test_damaged_files_and_pickles_are_refused(tmp_path):
    save_safetensors(tmp_path / "w.safetensors", tree())
    save_npz(tmp_path / "w.npz", tree())
    for name in ("w.safetensors", "w.npz"):
        whole = (tmp_path / name).read_bytes()
        for data in (whole[: len(whole) // 2], b"", b"nonsense"):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(ValueError, match=f"{name} is no whole"):
                load_variables(tmp_path / name)
    np.savez(tmp_path / "w.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="plain arrays"):
        load_npz(tmp_path / "w.npz")
    with open(tmp_path / "one.npz", "wb") as file:
        np.save(file, np.ones(2))
    with pytest.raises(ValueError, match="a single array"):
        load_npz(tmp_path / "one.npz")
    np.savez(tmp_path / "w.npz", __lepton__=np.frombuffer(b'{"structure":"{\\"a\\":\\":b\\"}","dtypes":{}}', np.uint8))
    with pytest.raises(ValueError, match="b: missing"):
        load_npz(tmp_path / "w.npz")


def test_a_name_of_no_kind_is_refused():
    with pytest.raises(ValueError, match=r"w\.pt: variables are read from \.lepton, \.safetensors, \.npz or an orbax folder"):
        load_variables("w.pt")
