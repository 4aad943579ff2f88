"""Leaves that a function does not read: left alone, and named; and plans for several functions at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lepton_jax.core.paths import flatten
from lepton_jax.graph import trace
from lepton_jax.graph.origins import unread
from lepton_jax.pruning.channels import Norm, Plan, Random, plan, verify

DRAW = np.random.default_rng(77)
X = jnp.asarray(DRAW.normal(size=(4, 6)), jnp.float32)


class TwoHeads(nn.Module):
    """An auxiliary head that only training has, and one whose result is thrown away."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(8, name="trunk")(x)))
        if train or self.is_initializing():
            aside = nn.Dense(3, name="aside_out")(nn.relu(nn.Dense(5, name="aside")(x)))
        nn.Dense(7, name="lost")(x)
        out = nn.Dense(2, name="head")(x)
        return (out, aside) if train else out


@pytest.fixture(scope="module")
def two_heads():
    module = TwoHeads()
    variables = module.init(jax.random.key(3), X)
    return module, jax.tree.map(lambda a: a + 0.1 * jnp.asarray(DRAW.normal(size=a.shape) ** 2, a.dtype), variables)


def train_of(module):
    return partial(module.apply, train=True, mutable=["batch_stats"])


LOST = ["params/lost/bias"]
ASIDE = ["params/aside/bias", "params/aside/kernel", "params/aside_out/bias", "params/aside_out/kernel"]


def test_an_auxiliary_head_is_left_alone_and_named(two_heads) -> None:
    module, variables = two_heads
    made = plan(module.apply, variables, X, fraction=0.5)
    assert [(group.size, len(group.removed)) for group in made.groups] == [(8, 4)]
    assert sorted(made.unread) == sorted([*ASIDE, *LOST, "params/lost/kernel"])
    shrunk = flatten(made.shrink(variables))
    assert all(shrunk[path].shape == leaf.shape for path, leaf in flatten(variables).items() if path in (*ASIDE, *LOST))
    assert shrunk["params/lost/kernel"].shape == (4, 7)  # it goes with the trunk, although its result is thrown away
    verify(made, module.apply, variables, X)
    for text in (str(made), repr(made)):
        assert f"not read by the function: {', '.join(made.unread)}" in text
    assert "\n" not in repr(made)
    assert not any(path in made.unread and path != "params/lost/kernel" for path, _ in made.fixed)
    again = Plan.from_json(made.to_json())
    assert again.unread == made.unread
    assert str(again) == str(made)


def test_one_plan_for_training_and_evaluation(two_heads) -> None:
    module, variables = two_heads
    train = train_of(module)
    made = plan((module.apply, train), variables, X, fraction=0.5)
    assert sorted(group.size for group in made.groups) == [5, 8]
    assert sorted(made.unread) == [*LOST, "params/lost/kernel"]
    for apply in (module.apply, train):
        verify(made, apply, variables, X)
    small = made.shrink(variables)
    assert small["params"]["aside"]["kernel"].shape == (4, 3)
    (out, aside), state = made.rewrite(train)(small, X)
    assert (out.shape, aside.shape, state["batch_stats"]["norm"]["mean"].shape) == ((4, 2), (4, 3), (4,))


def normed(v, x, train):
    """Haiku's batch norm: `hidden` is moved by training, and evaluation reads `average`."""
    y = x @ v["up"]
    state = dict(v["norm"])
    mean = jnp.mean(y, axis=0) if train else v["norm"]["average"]
    if train:
        state["hidden"] = 0.9 * v["norm"]["hidden"] + 0.1 * mean
        state["average"] = state["hidden"] / 0.5
    return jax.nn.relu(v["gain"] * (y - mean[None])) @ v["down"], {"norm": state}


VARIABLES = {
    "up": jnp.asarray(DRAW.normal(size=(6, 8)), jnp.float32),
    "down": jnp.asarray(DRAW.normal(size=(8, 2)), jnp.float32),
    "gain": jnp.ones((1, 8)),
    "norm": {"hidden": jnp.ones(8), "average": jnp.ones(8)},
}


@pytest.mark.parametrize("criterion", [Norm(order=1), Random(key=jax.random.key(0))])
def test_an_average_that_only_training_moves(criterion) -> None:
    evaluate, train = (partial(normed, train=train) for train in (False, True))
    assert unread(trace(evaluate, VARIABLES, X)) == ("norm/hidden",)
    assert unread(trace(train, VARIABLES, X)) == ("norm/average",)  # what it was does not matter
    alone = plan(evaluate, VARIABLES, X, fraction=0.5, criterion=criterion, ranking="global")
    assert [group.size for group in alone.groups] == [8]
    assert alone.shrink(VARIABLES)["norm"]["hidden"].shape == (8,)
    assert "not read by the function: norm/hidden" in str(alone)
    verify(alone, evaluate, VARIABLES, X)
    with pytest.raises(ValueError, match="plan removes channels that this function needs"):
        alone.rewrite(train)(alone.shrink(VARIABLES), X)  # it needs what evaluation did not tell
    both = plan([evaluate, train], VARIABLES, X, fraction=0.5, criterion=criterion)
    assert both.unread == ()
    assert both.shrink(VARIABLES)["norm"]["hidden"].shape == (4,)
    for apply in (evaluate, train):
        verify(both, apply, VARIABLES, X)


def test_moving_averages_of_the_weights_are_left_alone() -> None:
    weights = {k: VARIABLES[k] for k in ("up", "down")}
    variables = {"params": weights, "ema": weights}

    def apply(v, x):
        return jax.nn.relu(x @ v["params"]["up"]) @ v["params"]["down"]

    made = plan(apply, variables, X, fraction=0.2, of="parameters")
    assert made.unread == ("ema/down", "ema/up")
    assert {path for path, _ in made.removed} == {"params/up", "params/down"}


def test_an_operand_of_an_inner_function_that_does_not_use_it() -> None:
    inner = jax.jit(lambda w, aside, x: x @ w)

    def apply(v, x):
        _, y = jax.lax.scan(lambda c, w: (c, inner(v["up"], w, c)), x, v["loop"])
        return jax.nn.relu(y[0] + inner(v["up"], v["aside"], x)) @ v["down"]

    variables = {k: VARIABLES[k] for k in ("up", "down")} | {"aside": jnp.ones((6, 8)), "loop": jnp.ones((3, 4))}
    assert unread(trace(apply, variables, X)) == ("aside", "loop")
    made = plan(apply, variables, X, fraction=0.5)
    assert [group.size for group in made.groups] == [8]
    verify(made, apply, variables, X)


def test_what_is_no_function_is_refused() -> None:
    for wrong in ((), 3, ("a",), [normed, None]):
        with pytest.raises(TypeError, match=r"plan: apply must be a (pure )?function") as error:
            plan(wrong, VARIABLES, X, fraction=0.5)
        assert "\n" not in str(error.value)
