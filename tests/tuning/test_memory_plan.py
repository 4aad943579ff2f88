"""Plans on paper against the compiler: the same collectives, the same bytes of the state; and against sums by hand."""

import math
from collections import Counter

import jax
import numpy as np
import pytest

from lepton_jax.core import paths
from lepton_jax.training import collectives, data_mesh
from lepton_jax.tuning import MACHINES, compiled_step, plan_memory
from lepton_jax.tuning.memory_plan import DECODERS

SIZES = {"vocabulary": 256, "depth": 3, "width": 64, "heads": 4, "kv_heads": 2, "mlp": 128}
TINY = DECODERS["1b"].clone(**SIZES)
H100 = MACHINES["h100"]


@pytest.mark.parametrize("technique", ["dense", "qlora"])
def test_the_compiled_step_sends_what_the_plan_says(technique):
    """The program has a block once: what is in it counts for each of 3 blocks in the plan."""
    plan = plan_memory(TINY, H100, technique=technique, devices=4, length=64)
    step = compiled_step(TINY, data_mesh(jax.devices()[:4]), technique=technique, length=64)
    found = [one for one in collectives(step) if one.shape]
    weights = {(64, 32): 2, (64, 64): 2, (64, 128): 2, (128, 64): 1, (64,): 2}  # of a block; of its norms
    gathered = Counter(one.shape for one in found if one.kind == "all-gather")
    assert gathered == {**{shape: 2 * n for shape, n in weights.items()}, (256, 64): 1, (64, 256): 1}
    assert plan.counts["all-gather"] == 3 * 2 * sum(weights.values()) + 2
    elements = 3 * sum(math.prod(shape) * n for shape, n in weights.items()) * 2 + 2 * 256 * 64
    summed = 3 * sum(math.prod(shape) * n for shape, n in weights.items()) + 2 * 256 * 64 + 64
    assert plan.sent == 3 / 4 * 4 * (elements + 2 * summed)
    if technique == "dense":
        reduced = Counter(tuple(sorted(one.shape)) for one in found if one.kind == "all-reduce")
        assert reduced == {(64,): 3, (32, 64): 2, (64, 64): 2, (64, 128): 3, (64, 256): 2}
        assert plan.counts["all-reduce"] == 3 * (2 + 2 + 2 + 3) + 2 + 1
    state = step.memory_analysis().argument_size_in_bytes
    known = plan.parameters + plan.moments + plan.state
    assert 0 <= state - known < 1000  # tokens, the key, two numbers


def test_bytes_by_hand():
    """Of 1 device nothing is shared, gathered or sent."""
    count = 256 * 64 + 64 + 3 * (2 * 64 + 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    dense, pruned, lora = (
        plan_memory(TINY, H100, technique=technique, devices=1, length=8) for technique in ("dense", "prune", "lora")
    )
    assert (dense.parameters, dense.gradients, dense.moments) == (4 * count, 4 * count, 8 * count + 4)
    assert (dense.gathered, dense.sent, dense.wire, dense.view) == (0, 0, 0, 0)
    assert pruned.state - dense.state >= count - 64 - 2 * 3 * 64  # a byte a weight
    factors = 3 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert (lora.parameters, lora.state) == (4 * factors, 4 * count)
    spread = plan_memory(TINY, H100, devices=4, length=8)
    assert spread.parameters == dense.parameters // 4 + 3 * 64  # the last norm is whole


@pytest.mark.parametrize("name", ["1b", "7b", "70b"])
def test_decoders_have_the_size_of_their_names(name):
    shapes = jax.eval_shape(DECODERS[name].init, jax.random.key(0), np.zeros((1, 2), np.int32))
    count = sum(leaf.size for leaf in paths.flatten(shapes).values())
    assert float(name[:-1]) == pytest.approx(count / 1e9, rel=0.25)
    plan = plan_memory(DECODERS[name], H100, technique="prune", devices=256)
    assert plan.state == pytest.approx(count / 256, rel=0.01)
    assert plan.compute == pytest.approx(8 * count * 2048 / H100.flops, rel=0.2)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="devices"):
        plan_memory(TINY, H100, devices=0)
    with pytest.raises(ValueError, match="must be scanned"):
        plan_memory(TINY.clone(scan=False), H100)
