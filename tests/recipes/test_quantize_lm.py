"""`quantize_lm`: every row is what the calls it names give, and its figures are those of its model and its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lepton_jax as lepton
from lepton_jax.core import paths
from lepton_jax.models import Transformer, generate
from lepton_jax.quantization import Nearest, quantize_layers
from lepton_jax.recipes import quantize_lm

ROWS = ["float", "nearest", "AWQ", "GPTQ", "SparseGPT 2:4", "SparseGPT 2:4, few bits"]


@pytest.fixture(scope="module")
def decoder():
    """A scanned decoder with grouped heads and a tied table, and tokens."""
    kind = {"position": "rotary", "norm": "rms", "activation": "silu", "gated": True, "biases": (), "tied": True, "scan": True}
    net = Transformer(vocabulary=23, depth=2, width=32, heads=4, kv_heads=2, mlp=32, **kind)
    tokens = jax.random.randint(jax.random.key(5), (6, 13), 0, 23)
    variables = net.init(jax.random.key(6), tokens[:, :-1])
    return net, variables, tokens


@pytest.fixture(scope="module")
def found(decoder):
    net, variables, tokens = decoder
    model = lepton.Model(net.apply, variables, (tokens[:1, :-1],))
    return quantize_lm(model, [tokens[:4, :-1]], tokens, format="int4_g32", batch_size=4, progress=False)


def test_rows_and_their_table(found):
    assert list(found) == ROWS
    head, *lines = str(found).splitlines()
    assert head.split() == ["method", "perplexity", "lost", "%", "bytes", "smaller", "seconds"]
    assert [line.partition("  ")[0] for line in lines] == ROWS
    assert found["nearest"].bytes < found["float"].bytes / 4
    assert all(one.seconds >= 0 for one in found.values())


def test_perplexity_is_that_of_the_models(decoder, found):
    net, _, tokens = decoder
    for one in found.values():
        logits = np.asarray(net.apply(lepton.unpack(one.model.variables), tokens[:, :-1]), np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        entropy = -np.take_along_axis(logs, np.asarray(tokens)[:, 1:, None], -1).mean()
        np.testing.assert_allclose(one.perplexity, np.exp(entropy), rtol=1e-5)


def test_nearest_and_sparse_are_what_their_calls_give(decoder, found):
    net, variables, tokens = decoder
    kernels = [path for path in paths.flatten(variables) if path.endswith("kernel")]
    options = {"select": kernels, "sequential": False, "progress": False}
    by_hand, _ = quantize_layers(net.apply, variables, [tokens[:4, :-1]], "int4_g32", Nearest(), **options)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), by_hand, found["nearest"].model.variables))
    for name in ("SparseGPT 2:4", "SparseGPT 2:4, few bits"):
        leaves = paths.flatten(lepton.unpack(found[name].model.variables))
        for path in kernels:
            kept = (np.asarray(leaves[path]) != 0).reshape(2, -1, 4, leaves[path].shape[-1])
            assert (kept.sum(2) <= 2).all()
            assert kept.mean() > 0.4
        assert leaves["params/Embed_0/embedding"].dtype == jnp.float32


def test_the_table_is_left_alone_and_the_file_is_as_counted(decoder, found, tmp_path):
    net, variables, tokens = decoder
    one = found["GPTQ"]
    table = one.model.variables["params"]["Embed_0"]["embedding"]
    assert (table == variables["params"]["Embed_0"]["embedding"]).all()
    one.model.save(tmp_path / "lm.lepton", axes={0: "batch", 1: "time"})
    back = lepton.load(tmp_path / "lm.lepton")
    assert one.bytes == sum(tensor.total for tensor in back.account().tensors)
    made = generate(net.apply, back.packed, tokens[:1, :3], steps=4)
    assert (made == generate(net.apply, one.model.variables, tokens[:1, :3], steps=4)).all()


def test_without_a_batch_or_a_weight(decoder):
    model = lepton.Model(lambda v, tokens: v["table"][tokens], {"table": jnp.eye(4)})
    with pytest.raises(ValueError, match="at least one batch"):
        quantize_lm(model, [], jnp.zeros((1, 3), int))
    with pytest.raises(ValueError, match=r"no weight of a dot among table"):
        quantize_lm(model, [jnp.zeros((1, 2), int)], jnp.zeros((1, 3), int))
