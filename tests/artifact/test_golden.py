"""Files of earlier versions are read as they were written: the same leaves bit for bit, the same answers."""

from pathlib import Path

import numpy as np
import pytest
from golden_files import arrays_of

from lepton_jax.artifact import account, load
from lepton_jax.coding import arrays, sparse_index, symbols

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("**/*.lepton"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_golden_file_is_read_bit_for_bit(path):
    artifact, expected = load(path), dict(np.load(path.with_suffix(".npz")))
    x, y, coders = (expected.pop(name) for name in ("x", "y", "coders"))
    found = arrays_of(artifact)
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        np.testing.assert_array_equal(found[name], data, err_msg=name)
    assert sorted({name for tensor in account(path).tensors for name in tensor.coders}) == coders.tolist()
    # Another version of the compiler, or another machine, may sum in another order.
    np.testing.assert_allclose(artifact(x), y, rtol=1e-5, atol=1e-6)
    if "native" in artifact.manifest:
        np.testing.assert_allclose(artifact.native()(x), y, rtol=1e-4, atol=1e-5)


def test_the_golden_files_hold_every_coder():
    held = {name for path in FILES for name in np.load(path.with_suffix(".npz"))["coders"].tolist()}
    assert held == {*arrays.CODERS, *symbols.CODERS, *sparse_index.CODERS}


def test_the_golden_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("**/*") if path.is_file()) < 200_000
