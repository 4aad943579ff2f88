"""Every form computes what the operation computes: random shapes, float64 and float32, values that are not finite."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering_cases import KINDS, cast, convolution, pool

from lepton_jax import graph
from lepton_jax.graph.lowering import DEFAULT

SEEDS = 5
FRESH = int(np.random.SeedSequence().generate_state(1)[0]) % 10_000
fired: Counter[str] = Counter()


def cases() -> list[Any]:
    drawn = [(kind, seed) for kind in (*KINDS, "pool") for seed in range(SEEDS if kind != "pool" else 12)]
    return [pytest.param(kind, seed + FRESH, id=f"{kind}-{seed}") for kind, seed in drawn]


def case(kind: str, seed: int) -> Any:
    function, operands, said = pool(seed) if kind == "pool" else convolution(seed, kind)
    return function, tuple(operand.astype(np.float32) for operand in operands), said


def close(ours: Any, theirs: Any, part: float, said: str) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.shape == other.shape, said
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert np.abs(one - other).max() <= part * max(np.abs(other).max(), 1.0), said  # operands are about 1


@pytest.mark.parametrize(("kind", "seed"), cases())
def test_forms_are_exact(kind: str, seed: int) -> None:
    function, operands, said = case(kind, seed)
    with jax.enable_x64(True):
        given = cast(operands, jnp.float64)
        wanted = jax.jit(function)(*given)
        found = jax.jit(graph.fast_lowering(function))(*given)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(found))
        close(found, wanted, 1e-10, said)
    narrow = cast(operands, jnp.float32)
    fired.update(one.form for one in graph.explain_lowering(function, *narrow).changed)
    if seed % 2:
        found = jax.jit(graph.fast_lowering(function))(*narrow)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
        close(found, wanted, 1e-6, said)
    else:
        spoilt = [spoil(operand, seed + place) for place, operand in enumerate(narrow)]
        if len(spoilt) == 3:
            # Whether infinite weights are multiplied with padding, XLA decides from case to case: no form could follow it.
            spoilt[2] = narrow[2]
        ours, theirs = jax.jit(graph.fast_lowering(function))(*spoilt), jax.jit(function)(*spoilt)
        if len(spoilt) == 3:
            (out, (dx, dk)), (_, (_, their_dk)) = ours, theirs
            if kind in ("depthwise", "grouped"):
                # XLA takes channels apart by products with zeros, which spread what is not finite; the form does not.
                dk = jnp.where(jnp.isnan(their_dk), jnp.nan, dk)
            # In the derivative by the kernel the cotangent has the place of the weights.
            ours = out, (dx, dk if jnp.isfinite(spoilt[0]).all() else their_dk)
        same_kinds(ours, theirs, said)


def spoil(operand: Any, seed: int) -> Any:
    """One infinity or one value that is not a number, perhaps."""
    rng = np.random.default_rng(seed)
    flat = np.array(operand).reshape(-1)
    if rng.random() < 0.7:
        flat[rng.integers(flat.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return jnp.asarray(flat.reshape(operand.shape))


def same_kinds(ours: Any, theirs: Any, said: str) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(one), kind(other), err_msg=said)


def test_every_rule_was_asked() -> None:
    """Runs last in the file: random shapes that fire no rule would test nothing."""
    if not fired:
        pytest.skip("the cases of this file ran in another process")
    assert {rule.name for rule in DEFAULT} <= set(fired), fired
