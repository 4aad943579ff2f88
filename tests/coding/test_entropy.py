"""The coders: exact, near their models' entropy, and the same integers on every platform."""

import math

import numpy as np
import pytest

from lepton_jax.coding import huffman, mask_bits, mask_rows, rangecoder, rans, sparse_index, symbol_bits, symbols, tensor_codes
from lepton_jax.coding.rangecoder import Decoder, Encoder, Mixer
from lepton_jax.coding.sparse_index import Hints
from lepton_jax.coding.streams import Reader, Writer
from lepton_jax.core.errors import ArtifactError


def entropy_bytes(symbols_: np.ndarray) -> float:
    counts = np.unique(symbols_, return_counts=True)[1].astype(float)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def finished(reader: Reader) -> bool:
    return reader.left == 0


def test_squash_is_the_logistic_function_and_stretch_its_inverse():
    squash, stretch = rangecoder.squash_table(), rangecoder.stretch_table()
    for x in (-2047, -900, -1, 0, 1, 512, 2047):
        expected = 65536 / (1 + math.exp(-x / 256))
        assert abs(squash[x + 2047] - min(max(expected, 16), 65520)) <= 1
    assert len(squash) == 4095
    assert len(stretch) == 4096
    for i in (4, 100, 2048, 4000):
        p = (i + 0.5) / 4096
        assert abs(stretch[i] - 256 * math.log(p / (1 - p))) <= 3


@pytest.mark.parametrize("p1", [1, 300, 32768, 65000, 65535])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_range_coder_returns_the_bits_at_their_cost(p1, share):
    bits = (np.random.default_rng(p1).random(3000) < share).astype(int).tolist()
    encoder = Encoder()
    for bit in bits:
        encoder.code(bit, p1)
    data = encoder.finish()
    decoder = Decoder(data)
    assert [decoder.code(0, p1) for _ in bits] == bits
    decoder.finish()
    cost = sum(-math.log2(p1 / 65536 if bit else 1 - p1 / 65536) for bit in bits) / 8
    assert len(data) <= cost * 1.001 + 4


def test_range_decoder_refuses_a_stream_it_did_not_read():
    encoder = Encoder()
    for _ in range(100):
        encoder.code(1, 300)
    decoder = Decoder(encoder.finish())
    decoder.code(0, 300)
    with pytest.raises(ArtifactError, match="was read to byte"):
        decoder.finish()


def test_mixer_learns_the_context_that_matters():
    rng = np.random.default_rng(1)
    context = rng.integers(0, 2, 4000)
    noise = rng.integers(0, 50, 4000)
    bits = np.where(rng.random(4000) < 0.95, context, 1 - context)
    encoder, mixer = Encoder(), Mixer(3)
    for bit, c, n in zip(bits.tolist(), context.tolist(), noise.tolist()):
        mixer.code(encoder, bit, (0, c, n))
    ideal = 4000 / 8 * -(0.95 * math.log2(0.95) + 0.05 * math.log2(0.05))
    assert len(encoder.finish()) < 1.25 * ideal


@pytest.mark.parametrize("alphabet", [1, 2, 5, 256])
@pytest.mark.parametrize("count", [0, 1, 7, 70_000])
def test_rans_round_trip_near_entropy(alphabet, count):
    rng = np.random.default_rng(count + alphabet)
    values = (rng.geometric(0.4, count) - 1).clip(0, alphabet - 1)
    table = rans.frequencies(np.bincount(values, minlength=alphabet))
    assert table.sum() == 65536
    assert (table[np.unique(values)] > 0).all()
    writer = Writer()
    rans.write_table(writer, table)
    start = len(writer)
    rans.encode(writer, values, table)
    reader = Reader(bytes(writer.data))
    np.testing.assert_array_equal(rans.read_table(reader, alphabet), table)
    np.testing.assert_array_equal(rans.decode(reader, count, table, "values"), values)
    assert finished(reader)
    assert len(writer) - start <= 1.001 * entropy_bytes(values) + 64


def test_rans_with_contexts_uses_each_contexts_probabilities():
    rng = np.random.default_rng(5)
    contexts = rng.integers(0, 3, 50_000)
    bits = (rng.random(50_000) < np.array([0.01, 0.5, 0.99])[contexts]).astype(np.intp)
    p1 = np.array([655, 32768, 64881])
    table = np.stack([65536 - p1, p1], 1)
    writer = Writer()
    rans.encode(writer, bits, table, contexts)
    np.testing.assert_array_equal(rans.decode(Reader(bytes(writer.data)), 50_000, table, "positions", contexts), bits)
    ideal = sum(entropy_bytes(bits[contexts == c]) for c in range(3))
    assert len(writer) <= 1.001 * ideal + 64


def clustered_mask(rng: np.random.Generator, side: int, units: int) -> np.ndarray:
    """Each live unit looks at a spot of its own in a square image."""
    y, x = np.mgrid[:side, :side].reshape(2, -1, 1)
    cy, cx = rng.uniform(2, side - 2, (2, 1, units))
    near = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 6)
    return (rng.random(near.shape) < 0.6 * near) & (rng.random(units) < 0.7)


MASKS = {
    "clustered": lambda rng: clustered_mask(rng, 16, 40),
    "row": lambda rng: rng.random((1, 300)) < 0.4,
    "column": lambda rng: rng.random((300, 1)) < 0.4,
    "full": lambda rng: np.ones((9, 4), bool),
    "empty": lambda rng: np.zeros((9, 4), bool),
    "no_rows": lambda rng: np.zeros((0, 4), bool),
    "no_columns": lambda rng: np.zeros((4, 0), bool),
    "one": lambda rng: np.ones((1, 1), bool),
    "large": lambda rng: rng.random((300, 200)) < rng.random((300, 1)) * rng.random((1, 200)) * 0.2,
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_come_back(name):
    mask = MASKS[name](np.random.default_rng(3))
    lag = sparse_index.find_lag(mask)
    writer = sparse_index.encode(mask, lag, Hints())
    reader = Reader(bytes(writer.data))
    np.testing.assert_array_equal(sparse_index.decode(reader, mask.shape, lag, Hints()), mask)
    assert finished(reader)
    if mask.size > 1000:
        assert len(writer) < entropy_bytes(mask.reshape(-1))


def test_clustered_masks_cost_less_than_ideally_coded_gaps():
    mask = clustered_mask(np.random.default_rng(7), 20, 120)
    lag = sparse_index.find_lag(mask)
    assert abs(lag - 20) <= 1  # the line above, or its diagonal neighbour
    gaps = np.diff(np.flatnonzero(mask), prepend=-1)
    assert len(sparse_index.encode(mask, lag, Hints())) < 0.8 * entropy_bytes(gaps)


def test_hints_make_the_next_layers_dead_rows_cheap():
    rng = np.random.default_rng(2)
    alive = rng.random(400) < 0.5
    mask = (rng.random((400, 30)) < 0.3) & alive[:, None]
    told = Hints()
    told.remember(alive)
    blind, informed = sparse_index.encode(mask, 1, Hints()), sparse_index.encode(mask, 1, told)
    assert len(informed) < len(blind) - 25
    again = Hints()
    again.remember(alive)
    np.testing.assert_array_equal(sparse_index.decode(Reader(bytes(informed.data)), mask.shape, 1, again), mask)


@pytest.mark.parametrize(
    ("shape", "alphabet", "share"),
    [
        ((), 4, 0.0),
        ((0,), 4, 0.0),
        ((7,), 1, 0.0),
        ((60, 9), 9, 0.9),
        ((5, 5, 3, 4), 16, 0.6),
        ((400,), 256, 0.0),
        ((70_000, 4), 16, 0.0),
    ],
)
def test_symbols_come_back(shape, alphabet, share):
    rng = np.random.default_rng(4)
    values = rng.integers(0, alphabet, shape).astype(np.uint8)
    values = np.where(rng.random(shape) < share, alphabet // 2, values).reshape(-1).astype(np.uint8)
    writer = tensor_codes.encode(values, alphabet, shape, Hints())
    reader = Reader(bytes(writer.data))
    np.testing.assert_array_equal(tensor_codes.decode(reader, alphabet, shape, Hints()), values)
    assert finished(reader)


def test_values_like_their_neighbours_cost_less_than_their_entropy():
    rng = np.random.default_rng(6)
    mask = clustered_mask(rng, 16, 200)
    sign = np.arange(256)[:, None] % 16 > rng.integers(3, 13, (1, 200))  # an edge of its own for every unit
    codes = np.where(mask, 1 + 2 * sign + rng.integers(0, 2, mask.shape), 0).astype(np.uint8)
    coder = Encoder()
    symbol_bits.code_symbols(coder, codes[mask] - 1, mask, 4, 16)
    assert len(coder.finish()) < 0.9 * entropy_bytes(codes[mask])


class Cost:
    """A coder that writes nothing and adds up what an ideal one would take."""

    def __init__(self):
        self.bits = 0.0

    def code(self, bit, p1):
        self.bits -= math.log2(p1 / 65536 if bit else 1 - p1 / 65536)
        return bit

    def code_all(self, bits, p1s):
        return [self.code(bit, p1) for bit, p1 in zip(bits, p1s)]


def adaptive_models():
    rng = np.random.default_rng(8)
    mask = clustered_mask(rng, 16, 150)
    hints = ([2] * mask.shape[0], [2] * mask.shape[1])
    codes = rng.integers(0, 15, int(mask.sum()))
    yield lambda coder: mask_bits.code_mask(coder, mask, mask.shape, 16, hints)
    yield lambda coder: mask_rows.code_mask(coder, mask, mask.shape, 16, hints, False)
    yield lambda coder: mask_rows.code_mask(coder, mask, mask.shape, 16, hints, True)
    yield lambda coder: symbol_bits.code_symbols(coder, codes, mask, 15, 16)


@pytest.mark.parametrize("model", list(adaptive_models()))
def test_adaptive_streams_are_within_a_thousandth_of_their_models_entropy(model):
    coder, cost = Encoder(), Cost()
    model(coder)
    model(cost)
    assert cost.bits / 8 - 1 <= len(coder.finish()) <= 1.001 * cost.bits / 8 + 64


def test_coding_many_bits_is_coding_each():
    rng = np.random.default_rng(9)
    bits, p1s = (rng.random(2000) < 0.2).astype(int).tolist(), rng.integers(1, 65536, 2000).tolist()
    one, many = Encoder(), Encoder()
    for bit, p1 in zip(bits, p1s):
        one.code(bit, p1)
    assert many.code_all(bits, p1s) == bits
    data = many.finish()
    assert data == one.finish()
    decoder = Decoder(data)
    assert [decoder.code(0, p1) for p1 in p1s[:1000]] + decoder.code_all([], p1s[1000:]) == bits
    decoder.finish()


def optimal_bits(counts):
    """Total bits of a Huffman code, by merging the two least counts."""
    heap = sorted(counts[counts > 0].tolist())
    total = 0
    while len(heap) > 1:
        total += heap[0] + heap[1]
        heap = sorted([heap[0] + heap[1], *heap[2:]])
    return total


@pytest.mark.parametrize("alphabet", [2, 3, 16, 256])
def test_huffman_codes_are_optimal_and_take_their_lengths(alphabet):
    rng = np.random.default_rng(alphabet)
    values = (rng.geometric(3 / alphabet if alphabet > 6 else 0.6, 20_000) - 1).clip(0, alphabet - 1)
    counts = np.bincount(values, minlength=alphabet)
    lengths = huffman.code_lengths(counts)
    assert (counts * lengths).sum() == optimal_bits(counts)
    writer = Writer()
    huffman.encode(writer, values, counts)
    reader = Reader(bytes(writer.data))
    np.testing.assert_array_equal(huffman.decode(reader, len(values), alphabet, "values"), values)
    assert finished(reader)
    assert reader.bytes["values"] == -(-optimal_bits(counts) // 8)
    assert reader.bytes["tables"] <= alphabet / 2 + 8


def test_huffman_codes_are_prefix_codes_of_at_most_15_bits():
    counts = np.array([1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181, 6765, 0])
    lengths = huffman.code_lengths(counts)
    assert lengths.max() <= 15
    assert lengths[-1] == 0
    assert (counts * lengths).sum() <= 1.001 * optimal_bits(counts)  # whose longest is of 19
    words = [f"{code:0{length}b}" for code, length in zip(huffman.canonical(lengths).tolist(), lengths.tolist()) if length]
    assert not any(a != b and b.startswith(a) for a in words for b in words)
    values = np.repeat(np.arange(21), counts)
    writer = Writer()
    huffman.encode(writer, values, counts)
    np.testing.assert_array_equal(huffman.decode(Reader(bytes(writer.data)), len(values), 21, "values"), values)


def test_huffman_codes_go_on_across_the_pieces_that_are_looked_up():
    values = np.random.default_rng(10).integers(0, 6, 100_000)
    writer = Writer()
    huffman.encode(writer, values, np.bincount(values))
    assert len(writer) > 2 * huffman._LOOKED_UP
    np.testing.assert_array_equal(huffman.decode(Reader(bytes(writer.data)), len(values), 6, "values"), values)


def test_the_smallest_coder_is_chosen():
    rng = np.random.default_rng(11)
    streams = {
        "constant": np.full(100, 3),
        "bits": rng.integers(0, 16, 200_000),
        "rans": (rng.random(300_000) < 0.1).astype(int),
        "huffman": np.repeat([0, 1, 2, 2], 35_000)[rng.permutation(140_000)],
    }
    for name, values in streams.items():
        alphabet = max(int(values.max()) + 1, 4)
        reader = Reader(bytes(symbols.encode(values, alphabet).data))
        np.testing.assert_array_equal(symbols.decode(reader, len(values), alphabet), values)
        assert reader.coders == [name]
