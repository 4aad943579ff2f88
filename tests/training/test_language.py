"""Windows, and the entropy of the next token, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.training import next_token_entropy, next_token_loss, windows


def apply(variables, tokens):
    return variables["params"]["table"][tokens]


def test_windows_share_their_ends():
    rows = windows(np.arange(17, dtype=np.int16), 5)
    assert rows.dtype == np.int16
    assert rows.tolist() == [[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 10], [10, 11, 12, 13, 14, 15]]
    assert windows(np.arange(6), 5).shape == (1, 6)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_entropy_and_loss_are_numpys(batch_size):
    rng = np.random.default_rng(8)
    table, rows = rng.normal(size=(7, 7)), rng.integers(0, 7, (5, 9))
    logs = table - np.log(np.exp(table).sum(-1, keepdims=True))
    expected = -logs[rows[:, :-1], rows[:, 1:]].mean()
    variables = {"params": {"table": jnp.asarray(table, jnp.float32)}}
    assert next_token_entropy(apply, variables, rows, batch_size=batch_size) == pytest.approx(expected, rel=1e-5)
    loss, (state, metrics) = next_token_loss(apply)(variables["params"], {"kept": 1}, jnp.asarray(rows), jax.random.key(0))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert (state, metrics) == ({"kept": 1}, {})


def test_wrong_shapes_are_said():
    with pytest.raises(ValueError, match="more than 4 tokens"):
        windows(np.arange(4), 4)
    with pytest.raises(ValueError, match=r"rows of tokens \[N, L \+ 1\]"):
        next_token_entropy(apply, {}, np.zeros((0, 3), int))
