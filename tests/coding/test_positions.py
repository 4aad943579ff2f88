"""Every coder of positions, by itself: exact for all masks it can hold, compact for those it is made for."""

import math

import numpy as np
import pytest

from lepton_jax.coding import gaps, groups, mask_bits, mask_classes, mask_rows, sparse_index
from lepton_jax.coding.rangecoder import Decoder, Encoder
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError

MASKS = {
    "sparse": lambda rng: rng.random((90, 40)) < 0.05,
    "wide": lambda rng: rng.random((3, 700)) < 0.1,
    "tall": lambda rng: rng.random((900, 2)) < 0.1,
    "gap_of_255": lambda rng: np.isin(np.arange(2000), [0, 255, 511, 1999]).reshape(4, 500),
    "dead_rows_and_columns": lambda rng: (rng.random((64, 30)) < 0.3) & (rng.random((64, 1)) < 0.4) & (rng.random(30) < 0.5),
    "full": lambda rng: np.ones((5, 6), bool),
    "empty": lambda rng: np.zeros((5, 6), bool),
    "one": lambda rng: np.ones((1, 1), bool),
}


def code_bits(mask, told):
    coder, hints = Encoder(), ([2] * mask.shape[0], [2] * mask.shape[1])
    mask_bits.code_mask(coder, mask, mask.shape, 1, hints)
    return mask_bits.code_mask(Decoder(coder.finish()), None, mask.shape, 1, hints)


def code_rows(mask, told):
    coder, hints = Encoder(), ([2] * mask.shape[0], [2] * mask.shape[1])
    mask_rows.code_mask(coder, mask, mask.shape, 3, hints, told)
    decoder = Decoder(coder.finish())
    out = mask_rows.code_mask(decoder, None, mask.shape, 3, hints, told)
    decoder.finish()
    return out


def through(encode, decode, mask):
    writer = Writer()
    encode(writer, mask)
    reader = Reader(bytes(writer.data))
    out = decode(reader, mask.shape)
    assert reader.left == 0
    return out


CODERS = {
    "bits": lambda mask: code_bits(mask, False),
    "rows": lambda mask: code_rows(mask, False),
    "rows_told": lambda mask: code_rows(mask, True),
    "classes": lambda mask: through(mask_classes.encode, mask_classes.decode, mask),
    "gaps": lambda mask: through(gaps.encode_flat, gaps.decode_flat, mask),
    "lists": lambda mask: through(gaps.encode_rows, gaps.decode_rows, mask),
}


@pytest.mark.parametrize("coder", CODERS)
def test_each_coder_returns_every_mask(coder):
    for name, make in MASKS.items():
        mask = make(np.random.default_rng(0))
        np.testing.assert_array_equal(CODERS[coder](mask), mask, err_msg=name)


def coded(mask):
    """Encode with the coders competing; return the bytes and the chosen coder."""
    writer = sparse_index.encode(mask, 1, Hints())
    reader = Reader(bytes(writer.data))
    np.testing.assert_array_equal(sparse_index.decode(reader, mask.shape, 1, Hints()), mask)
    assert reader.left == 0
    return len(writer), reader.coders[0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 16)])
def test_n_of_m_masks_cost_the_logarithm_of_their_patterns(n, m, axis):
    rng = np.random.default_rng(n * m)
    mask = (rng.permuted(np.tile(np.arange(m) < n, (40, 30, 1)), axis=2)).reshape(40, 30 * m)
    size, coder = coded(mask if axis == 1 else np.ascontiguousarray(mask.T))
    assert coder == "groups"
    assert size <= 40 * 30 * math.log2(math.comb(m, n)) / 8 * 1.03 + 40


def test_smallest_groups_are_found():
    rng = np.random.default_rng(0)
    mask = rng.permuted(np.tile([True, True, False, False], (16, 8, 1)), axis=2).reshape(16, 32)
    assert groups.find_groups(mask) == (2, 4, 1)
    mask[3, 5] = not mask[3, 5]
    assert groups.find_groups(mask) is None


def test_block_masks_cost_a_bit_a_block():
    blocks = np.random.default_rng(1).random((20, 16)) < 0.3
    mask = np.kron(blocks, np.ones((32, 8), bool))
    assert groups.find_blocks(mask) == (32, 8)
    cut = mask[:-5, :-3]  # the last blocks may be cut
    assert groups.find_blocks(cut) == (32, 8)
    for some in (mask, cut):
        size, coder = coded(some)
        assert coder == "blocks"
        assert size <= 20 * 16 / 8 + 10


def test_kernels_pruned_as_a_whole_are_coded_once():
    mask = np.tile(np.random.default_rng(2).random((30, 20)) < 0.5, (9, 1))
    assert groups.find_repeats(mask) == 9
    size, coder = coded(mask)
    assert coder == "blocks"
    assert size <= 30 * 20 / 8 + 10


def test_an_adaptive_model_beats_gaps_on_rows_of_unlike_density():
    rng = np.random.default_rng(3)
    mask = rng.random((200, 120)) < rng.gamma(1, 1, (200, 1)) * rng.gamma(1, 1, (1, 120)) * 0.1
    flat, lists = Writer(), Writer()
    gaps.encode_flat(flat, mask)
    gaps.encode_rows(lists, mask)
    size, coder = coded(mask)
    assert coder in ("context", "rows")
    assert size < 0.83 * min(len(flat), len(lists))


def test_log_classes_agree_with_the_scalar_one():
    values = np.concatenate([np.arange(3000), 2 ** np.arange(11, 31), 2 ** np.arange(11, 31) - 1])
    np.testing.assert_array_equal(mask_rows.log_classes(values), [mask_bits.log_class(value) for value in values.tolist()])


@pytest.mark.parametrize("coder", sparse_index.CODERS)
def test_damaged_streams_end_in_an_error_or_a_mask(coder):
    rng = np.random.default_rng(4)
    number, refused = sparse_index.CODERS.index(coder), 0
    for _ in range(60):
        data = bytes([number, *rng.integers(0, 6, 3), *rng.integers(0, 256, 40)])
        try:
            mask = sparse_index.decode(Reader(data), (12, 16), 1, Hints())
        except ArtifactError:
            refused += 1
        else:
            assert mask.shape == (12, 16)
            assert mask.dtype == bool
    assert refused > 0 or coder == "bits"
