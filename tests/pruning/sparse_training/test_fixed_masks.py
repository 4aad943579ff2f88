"""Fixed masks, and what gathers and makes masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lepton_jax import chain, fake_quant, freeze, low_rank, pack, prune, unpack
from lepton_jax.pruning.sparse_training import fixed_masks, masked_moments, masks_of, nonzero_masks, sparsity_of
from lepton_jax.training import create, make_train_step

MASK = jnp.array([[True, False], [False, True]])
PARAMS = {"bias": jnp.array([1.0, 2.0]), "kernel": jnp.array([[1.0, -4.0], [3.0, 2.0]])}


def test_gradients_by_hand() -> None:
    slope = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    for gradient, expected in (("masked", [[1.0, 0.0], [0.0, 5.0]]), ("straight_through", slope.tolist())):
        transform = fixed_masks({"kernel": MASK}, gradient=gradient)
        params, state = transform.init(PARAMS)
        assert transform.view(params, state)["kernel"].tolist() == [[1.0, 0.0], [0.0, 2.0]]
        grads = jax.grad(lambda p, t=transform, s=state: jnp.sum(slope * t.view(p, s)["kernel"]))(params)
        assert grads["kernel"].tolist() == expected
        assert grads["bias"].tolist() == [0.0, 0.0]
        after, state = transform.update(params, state, grads, 3)
        master = [[1.0, 0.0], [0.0, 2.0]] if gradient == "masked" else PARAMS["kernel"].tolist()
        assert after["kernel"].tolist() == master


def test_coded_leaves_are_masked() -> None:
    transform = chain(fake_quant(bits=4, select="kernel"), fixed_masks({"kernel": MASK}))
    params, state = transform.init(PARAMS)
    seen = transform.view(params, state)
    assert (np.asarray(seen["kernel"]) != 0).tolist() == MASK.tolist()
    np.testing.assert_array_equal(unpack(pack(transform, params, state))["kernel"], seen["kernel"])


def test_one_compiled_step_serves_all_masks() -> None:
    traces = []

    def loss_fn(params: dict, model_state: dict, batch: jax.Array, key: jax.Array) -> tuple:
        traces.append(1)
        return jnp.sum((batch @ params["kernel"] - 1) ** 2), (model_state, {})

    tx = masked_moments(optax.adamw(0.1, weight_decay=0.1))
    step = make_train_step(loss_fn, tx, fixed_masks({"kernel": MASK}))
    for mask in (MASK, ~MASK):
        state = create(PARAMS, {}, tx, fixed_masks({"kernel": mask}), jax.random.key(0))
        for _ in range(3):
            state, _ = step(state, np.ones((3, 2), np.float32))
        assert (np.asarray(state.params["kernel"]) != 0).tolist() == mask.tolist()
    assert len(traces) == 1


def test_masks_that_do_not_fit_are_all_named() -> None:
    masks = {"other": MASK, "kernel": MASK[0], "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match="fixed_masks: masks must fit") as error:
        fixed_masks(masks).init(PARAMS)
    for part in (
        "other: no such floating leaf; there are: bias, kernel",
        "kernel: the mask's shape is (2,)",
        "bias: a mask must",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="no masks were given"):
        fixed_masks({}).init(PARAMS)
    with pytest.raises(ValueError, match="gradient must be 'masked' or 'straight_through'; got 'none'"):
        fixed_masks({"kernel": MASK}, gradient="none")


def test_masks_of_any_state() -> None:
    transform = chain(fixed_masks({"kernel": MASK}), chain(prune(0.5, select="bias"), fake_quant(bits=4)))
    _, state = transform.init(PARAMS)
    found = masks_of((state, {"more": [()]}))
    assert set(found) == {"kernel", "bias"}
    np.testing.assert_array_equal(found["kernel"], MASK)
    assert found["bias"].tolist() == [False, True]
    both = masks_of(chain(fixed_masks({"kernel": MASK}), fixed_masks({"kernel": MASK[:, ::-1]})).init(PARAMS)[1])
    assert not both["kernel"].any()
    assert masks_of(()) == {}
    assert masks_of(low_rank(1).init(PARAMS)[1]) == {}
    frozen = freeze(transform, state)
    assert set(masks_of(frozen.init(PARAMS)[1])) == {"kernel", "bias"}


def test_nonzero_masks_and_sparsity() -> None:
    masks = nonzero_masks({"kernel": jnp.array([[0.0, -0.0, jnp.nan, 1e-30]]), "bias": jnp.zeros(3)})
    assert masks["kernel"].tolist() == [[False, False, True, True]]
    assert float(sparsity_of(masks | {"more": jnp.zeros(4, bool)})) == 0.75
