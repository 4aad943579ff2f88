"""Each loss: a reference in float64, its gradient, what vanishes at equality, narrow dtypes, jit and vmap, bad input."""

import itertools
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import distillation as d
from lepton_jax.graph import trace

sys.path.insert(0, str(Path(__file__).parent))
import reference_losses as ref

DRAW = np.random.default_rng(20)
LABELS = np.array([0, 3, 3, 1])
MASK = np.array([True, False, True, True])


def normal(*shape, scale=1.0):
    return (scale * DRAW.normal(size=shape)).astype(np.float32)


LOGITS = normal(4, 5, scale=3), normal(4, 5, scale=3)
MAPS = normal(3, 2, 4, 3), normal(3, 2, 4, 5)
SAME_MAPS = normal(3, 2, 4, 3), normal(3, 2, 4, 3)
DENSE = normal(5, 4), normal(5, 6)
SAME_DENSE = normal(5, 4), normal(5, 4)
SECOND = normal(3, 2, 4, 2), normal(3, 2, 4, 2)
RAW = normal(3)
BANK = d.Bank(jnp.asarray(np.linalg.qr(normal(4, 4))[0]), jnp.int32(0))
OTHERS = [[row for j, row in enumerate(SAME_DENSE[1]) if j != i] for i in range(5)]

# name: (loss of student and teacher, its reference, student, teacher, whether it is zero at equality)
CASES = {
    "soft_targets": (d.soft_targets, ref.soft_targets, *LOGITS, True),
    "soft_targets 4": (partial(d.soft_targets, temperature=4.0), lambda s, t: ref.soft_targets(s, t, 4.0), *LOGITS, True),
    "top_k": (partial(d.top_k_soft_targets, k=2, temperature=2.0), lambda s, t: ref.top_k(s, t, 2.0, 2), *LOGITS, True),
    "top_k all": (partial(d.top_k_soft_targets, k=5), ref.soft_targets, *LOGITS, True),
    "dkd": (
        lambda s, t: d.dkd(s, t, LABELS, 2.0, alpha=0.5, beta=3.0),
        lambda s, t: ref.dkd(s, t, LABELS, 2.0, 0.5, 3.0),
        *LOGITS,
        True,
    ),
    "dist": (
        lambda s, t: d.dist(s, t, 2.0, inter=0.5, intra=2.0),
        lambda s, t: ref.dist(s, t, 2.0, 0.5, 2.0),
        *LOGITS,
        True,
    ),
    "teacher_free": (
        lambda s, t: d.teacher_free(s, LABELS, 5.0, confidence=0.9),
        lambda s, t: ref.teacher_free(s, LABELS, 5.0, 0.9),
        *LOGITS,
        False,
    ),
    "token_kl": (
        lambda s, t: d.token_kl(s, t, MASK, 2.0),
        lambda s, t: ref.token_kl(s, t, MASK, 2.0),
        *LOGITS,
        True,
    ),
    "hints": (d.hints, ref.hints, *SAME_MAPS, True),
    "attention maps": (d.attention_transfer, ref.attention_transfer, *MAPS, True),
    "attention dense 3": (
        partial(d.attention_transfer, power=3.0),
        lambda s, t: ref.attention_transfer(s, t, 3.0),
        *SAME_DENSE,
        True,
    ),
    "fsp": (
        lambda s, t: d.fsp((s, SECOND[0]), (t, SECOND[0])),
        lambda s, t: ref.fsp((s, SECOND[0]), (t, SECOND[0])),
        *SAME_MAPS,
        True,
    ),
    "vid": (
        lambda s, t: d.vid(s, RAW, t, floor=0.1),
        lambda s, t: ref.vid(s, RAW.astype(np.float64), t, 0.1),
        *SAME_MAPS,
        False,
    ),
    "nst linear": (partial(d.nst, kernel="linear"), lambda s, t: ref.nst(s, t, "linear"), *MAPS, True),
    "nst polynomial": (
        partial(d.nst, degree=3, offset=0.5),
        lambda s, t: ref.nst(s, t, "polynomial", 3, 0.5),
        *MAPS,
        True,
    ),
    "rkd_distance": (partial(d.rkd_distance, delta=0.3), lambda s, t: ref.rkd_distance(s, t, 0.3), *DENSE, True),
    "rkd_angle": (partial(d.rkd_angle, delta=0.5), lambda s, t: ref.rkd_angle(s, t, 0.5), *DENSE, True),
    "similarity": (d.similarity_preserving, ref.similarity_preserving, *MAPS, True),
    "pkt": (d.pkt, ref.pkt, *DENSE, True),
    "crd": (
        partial(d.crd, population=50, temperature=0.5),
        lambda s, t: ref.crd(s, t, OTHERS, 50, 0.5),
        *SAME_DENSE,
        False,
    ),
    "crd_bank": (
        lambda s, t: d.crd_bank(s, t, BANK, population=50, temperature=0.5),
        lambda s, t: ref.crd(s, t, [np.asarray(BANK.embeddings, np.float64)] * 5, 50, 0.5),
        *SAME_DENSE,
        False,
    ),
}


MOVES = {"slice", "reshape", "transpose", "select_n", "broadcast_in_dim", "top_k", "jit"}
"""What may happen to a narrow value before it is cast."""


def mean(loss):
    return lambda s, t: jnp.mean(loss(s, t))


@pytest.mark.parametrize("name", CASES)
def test_loss(name):
    loss, reference, student, teacher, zero = CASES[name]
    loss, wide = mean(loss), [x.astype(np.float64) for x in (student, teacher)]
    both = jax.jit(jax.value_and_grad(loss))
    value, grad = both(student, teacher)
    assert value.dtype == jnp.float32
    assert value.shape == ()
    np.testing.assert_allclose(value, reference(*wide), rtol=1e-5, atol=1e-7)

    # The gradient, by central differences of the reference along a random direction.
    along, h = np.random.default_rng(1).normal(size=student.shape), 1e-5
    slope = (reference(wide[0] + h * along, wide[1]) - reference(wide[0] - h * along, wide[1])) / (2 * h)
    np.testing.assert_allclose(np.sum(np.asarray(grad, np.float64) * along), slope, rtol=1e-3, atol=1e-5)

    # Narrow logits and features: nothing is computed in them.
    narrow = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in (student, teacher)]
    for eqn in trace(loss, *narrow).equations():
        assert eqn.primitive in MOVES or all(x.dtype != jnp.bfloat16 or x.shape == () for x in eqn.out_avals), eqn.primitive

    # At equality: the claim of zero, and a finite gradient.
    other = teacher if teacher.shape == student.shape or zero else student
    value, grad = both(other, other)
    assert bool(jnp.all(jnp.isfinite(grad)))
    if zero:
        np.testing.assert_allclose(value, 0, atol=2e-6)
        np.testing.assert_allclose(grad, 0, atol=2e-3)


@pytest.mark.parametrize("name", ["dkd", "dist", "nst polynomial", "rkd_angle", "crd"])
def test_vmap_over_several_students(name):
    loss, _, student, teacher, _ = CASES[name]
    students = jnp.stack([student, 2 * student, -student])
    values, one = jax.jit(jax.vmap(mean(loss), in_axes=(0, None)))(students, teacher), jax.jit(mean(loss))
    np.testing.assert_allclose(values, [one(s, teacher) for s in students], rtol=1e-5, atol=1e-7)


def test_gaussian_nst_holds_its_width_fixed():
    """Its value against the reference; its gradient is not the reference's, whose width moves along."""
    student, teacher = MAPS
    both = jax.jit(jax.value_and_grad(partial(d.nst, kernel="gaussian")))
    value, grad = both(student, teacher)
    np.testing.assert_allclose(value, ref.nst(*(x.astype(np.float64) for x in MAPS), "gaussian"), rtol=1e-5)
    assert bool(jnp.all(jnp.isfinite(grad)))
    one = np.ones_like(student), np.ones_like(teacher)  # all patterns coincide: the width is zero
    value, grad = both(*one)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert bool(jnp.all(jnp.isfinite(grad)))


# ------------------------------------------------------------------------------------------------------------ by hand


def test_soft_targets_by_hand():
    """p = (1/4, 3/4) against (1/2, 1/2): 1/4 log 1/2 + 3/4 log 3/2; at T = 2 with doubled logits the same, times 4."""
    t = np.log([1.0, 3.0]).astype(np.float32)
    hand = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(d.soft_targets(np.zeros(2, np.float32), t), hand, rtol=1e-6)
    np.testing.assert_allclose(d.soft_targets(np.zeros(2, np.float32), 2 * t, 2.0), 4 * hand, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_computed_in_float32(dtype):
    narrow = [jnp.asarray(x, dtype) for x in LOGITS]
    value = d.soft_targets(*narrow, 4.0)
    assert value.dtype == jnp.float32
    expected = ref.soft_targets(*(np.asarray(x, np.float64) for x in narrow), 4.0)
    np.testing.assert_allclose(np.mean(value), expected, rtol=1e-5)


def test_the_squared_temperature_keeps_the_gradients_size():
    student, teacher = jnp.asarray(LOGITS[0]), jnp.asarray(LOGITS[1])
    sizes = [jnp.linalg.norm(jax.grad(lambda s, T=T: d.soft_targets(s, teacher, T).sum())(student)) for T in (20.0, 200.0)]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.1)
    # In the limit: T**2 / T**2 of (1 / C) (centred student - centred teacher).
    centred = [x - x.mean(-1, keepdims=True) for x in LOGITS]
    grad = jax.grad(lambda s: d.soft_targets(s, teacher, 1e3).sum())(student)
    np.testing.assert_allclose(grad, (centred[0] - centred[1]) / 5, atol=5e-3)


def test_dkd_with_the_coupled_weight_is_soft_targets():
    for s, t, y in zip(*LOGITS, LABELS):
        p = ref.softmax(t.astype(np.float64), 3.0)[y]
        np.testing.assert_allclose(d.dkd(s, t, y, 3.0, beta=1 - p), d.soft_targets(s, t, 3.0), rtol=1e-5)


def test_top_k_is_bounded_by_the_whole_and_grows():
    values = [jnp.mean(d.top_k_soft_targets(*LOGITS, k=k)) for k in range(1, 6)]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(values))
    np.testing.assert_allclose(values[-2:], jnp.mean(d.soft_targets(*LOGITS)), rtol=1e-5)


def test_extreme_and_impossible_logits():
    """Classes that are masked out by -inf, or far apart, in float16's range."""
    s, t = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.array([[2.0, 1.0, -jnp.inf]])
    expected = d.soft_targets(s[:, :2], t[:, :2])
    value, grad = jax.jit(jax.value_and_grad(lambda s: d.soft_targets(s, t).sum()))(s)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    assert grad[0, 2] == 0
    assert bool(jnp.all(jnp.isfinite(grad)))
    far = jnp.array([[6e4, -6e4, 0.0]], jnp.float16)
    for loss in (d.soft_targets, lambda s, t: d.dkd(s, t, jnp.array([0]), 1.0)):
        value, grad = jax.jit(jax.value_and_grad(lambda s, loss=loss: loss(s, far[:, ::-1]).sum()))(far)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_padding_has_no_effect_even_if_it_is_nan():
    s, t = (np.array(x) for x in LOGITS)
    clean = d.token_kl(s, t, MASK)
    s[1], t[1] = np.nan, np.inf
    value, grad = jax.jit(jax.value_and_grad(d.token_kl))(s, t, MASK)
    np.testing.assert_allclose(value, clean, rtol=1e-6)
    assert np.isfinite(grad).all()
    assert not grad[1].any()
    assert d.token_kl(s, t, np.zeros(4, bool)) == 0
    np.testing.assert_allclose(d.token_kl(s.reshape(2, 2, 5), t.reshape(2, 2, 5), MASK.reshape(2, 2)), clean, rtol=1e-6)


def test_relations_where_points_coincide():
    """The trap: sqrt has no derivative at 0."""
    points = np.array([[1, 2], [1, 2], [0, 1], [0, 0]], np.float32)
    losses = [d.rkd_distance, d.rkd_angle, d.similarity_preserving, d.pkt, d.attention_transfer]
    for loss in (*losses, partial(d.crd, population=9)):
        both = jax.jit(jax.value_and_grad(loss))
        for one in (points, np.ones_like(points), np.zeros_like(points)):
            value, grad = both(one, points[:, ::-1])
            assert np.isfinite(value), loss
            assert np.isfinite(grad).all(), loss


def test_relations_are_blind_to_scale_shift_and_turn():
    x = DENSE[0]
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0].astype(np.float32)
    assert d.rkd_distance(3 * x @ turn + 1, x) < 1e-10
    assert d.rkd_angle(3 * x @ turn + 1, x) < 1e-10
    assert d.similarity_preserving(3 * x @ turn, x) < 1e-10
    assert abs(d.pkt(3 * x @ turn, x)) < 1e-6


def test_constant_probabilities_do_not_correlate():
    """Equal logits give rows that are constant but for rounding: no direction may come of it."""
    value, grad = jax.jit(jax.value_and_grad(d.dist))(
        jnp.full((4, 7), 0.3), np.random.default_rng(3).normal(size=(4, 7)).astype(np.float32)
    )
    np.testing.assert_allclose(value, 2.0, rtol=1e-6)
    assert np.isfinite(grad).all()


def test_fsp_pools_the_first_layer_by_maxima():
    a = jnp.arange(8.0).reshape(1, 4, 2, 1)
    b = jnp.ones((1, 2, 1, 1))  # G: mean of the maxima 3 and 7
    assert d.fsp((a, b), (a, 0 * b)) == 25.0


def test_bank_is_a_ring():
    memory = d.bank(4, 2, jax.random.key(0))
    np.testing.assert_allclose(jnp.linalg.norm(memory.embeddings, axis=1), 1, rtol=1e-6)
    push = jax.jit(d.push)
    for n in range(3):
        memory = push(memory, jnp.array([[n + 1.0, 0.0], [0.0, n + 1.0]]) * (-1) ** n)
    assert int(memory.cursor) == 2
    assert memory.embeddings.tolist() == [[1, 0], [0, 1], [-1, 0], [0, -1]]


# ---------------------------------------------------------------------------------------------------------- bad input

Z = np.zeros
BAD = {
    "temperature zero": (lambda: d.soft_targets(*LOGITS, 0.0), "temperature must be positive and finite; got 0.0"),
    "temperature negative": (lambda: d.dkd(*LOGITS, LABELS, -1.0), "dkd: temperature .* got -1.0"),
    "temperature nan": (lambda: d.dist(*LOGITS, float("nan")), "dist: temperature .* got nan"),
    "temperature tokens": (lambda: d.token_kl(*LOGITS, MASK, 0), "temperature must be positive"),
    "crd temperature": (lambda: d.crd(*SAME_DENSE, population=9, temperature=0.0), "crd: temperature .* got 0.0"),
    "logits": (lambda: d.soft_targets(Z((4, 5)), Z((4, 6))), r"same shape; got \(4, 5\) and \(4, 6\)"),
    "dkd logits": (lambda: d.dkd(Z((4, 5)), Z((3, 5)), LABELS), r"same shape; got \(4, 5\) and \(3, 5\)"),
    "dkd labels": (lambda: d.dkd(*LOGITS, Z((4, 5), int)), r"labels .* got \(4, 5\) and \(4, 5\)"),
    "dkd weight": (lambda: d.dkd(*LOGITS, LABELS, beta=-1), "beta must be 0 or more"),
    "dist batch": (lambda: d.dist(Z((1, 5)), Z((1, 5))), r"batch of 2 or more; got shapes \(1, 5\)"),
    "k": (lambda: d.top_k_soft_targets(*LOGITS, k=6), "k must be a whole number from 1 to 5; got 6"),
    "confidence": (lambda: d.teacher_free(LOGITS[0], LABELS, confidence=1.0), r"confidence must be in \(0, 1\); got 1.0"),
    "mask": (lambda: d.token_kl(*LOGITS, MASK[:3]), r"mask must be \(4,\), one a token; got \(3,\)"),
    "hints": (lambda: d.hints(Z((2, 3)), Z((2, 4))), r"hints: .* got \(2, 3\) and \(2, 4\)"),
    "attention": (
        lambda: d.attention_transfer(Z((2, 4, 4, 3)), Z((2, 2, 2, 3))),
        r"positions .* got \(2, 4, 4\) and \(2, 2, 2\)",
    ),
    "power": (lambda: d.attention_transfer(*MAPS, power=0.5), "power must be 1 or more"),
    "fsp count": (lambda: d.fsp([MAPS[0]], [MAPS[0]]), "two layers' features of each; got 1 and 1"),
    "fsp channels": (lambda: d.fsp((MAPS[0], SECOND[0]), (MAPS[1], SECOND[0])), r"flow .* \(3, 3, 2\) and \(3, 5, 2\)"),
    "fsp sizes": (lambda: d.fsp((Z((1, 3, 2)), Z((1, 2, 2))), MAPS), r"positions \(3,\) cannot be pooled to \(2,\)"),
    "vid": (lambda: d.vid(Z((2, 3)), Z(4), Z((2, 3))), r"raw_variance must be \(3,\); got \(4,\)"),
    "vid floor": (lambda: d.vid(Z((2, 3)), Z(3), Z((2, 3)), floor=0.0), "floor must be positive"),
    "nst dense": (lambda: d.nst(*SAME_DENSE), r"3 axes or more; got shape \(5, 4\)"),
    "nst positions": (lambda: d.nst(Z((2, 4, 3)), Z((2, 5, 3))), r"got \(2, 4, 3\) and \(2, 5, 3\)"),
    "nst kernel": (lambda: d.nst(*MAPS, kernel="cubic"), "kernel must be one of 'linear', 'polynomial', 'gaussian'"),
    "rkd batch": (lambda: d.rkd_angle(Z((2, 3)), Z((2, 3))), r"batch of 3 or more; got shapes \(2, 3\) and \(2, 3\)"),
    "rkd delta": (lambda: d.rkd_distance(*DENSE, delta=0), "delta must be positive"),
    "similarity": (lambda: d.similarity_preserving(Z((2, 3)), Z((3, 3))), r"same B; got shapes \(2, 3\) and \(3, 3\)"),
    "crd shapes": (lambda: d.crd(*DENSE, population=9), r"got \(5, 4\) and \(5, 6\)"),
    "population": (lambda: d.crd(*SAME_DENSE, population=0), "population must be a whole number from 1"),
    "bank": (lambda: d.push(BANK, Z((3, 4))), r"B divides 4; got \(3, 4\)"),
    "bank width": (lambda: d.crd_bank(Z((2, 3)), Z((2, 3)), BANK, population=9), r"width 4; got shape \(2, 3\)"),
    "empty ensemble": (lambda: d.ensemble_logits([]), "there is no teacher to average; give one or more"),
    "no teachers": (lambda: d.ensemble([]), "there is no teacher to average; give one or more"),
    "ensemble shapes": (lambda: d.ensemble_logits([Z((2, 3)), Z((2, 4))]), r"members 0 and 1: .*\(2, 3\) and \(2, 4\)"),
    "average": (lambda: d.ensemble_logits([Z(3)], average="median"), "must be one of 'probabilities', 'logits'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
