"""Losses where classes are impossible: logits of -inf in the teacher, the student, or both."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import distillation as d
from lepton_jax.distillation.numerics import log_total
from lepton_jax.training.classification import cross_entropy

LABELS = np.array([0, 3, 3, 1])
MASK = np.array([True, True, False, True])
LOSSES: dict[str, Callable] = {
    "soft_targets": d.soft_targets,
    "soft_targets 4": partial(d.soft_targets, temperature=4.0),
    "top_k 1": partial(d.top_k_soft_targets, k=1),
    "top_k 2": partial(d.top_k_soft_targets, k=2, temperature=2.0),
    "top_k 4": partial(d.top_k_soft_targets, k=4),
    "top_k all": partial(d.top_k_soft_targets, k=5),
    "dkd": lambda s, t: d.dkd(s, t, LABELS, 2.0, alpha=0.5, beta=3.0),
    "dkd others": lambda s, t: d.dkd(s, t, LABELS, alpha=0.0),
    "dkd label": lambda s, t: d.dkd(s, t, LABELS, beta=0.0),
    "dist": lambda s, t: d.dist(s, t, 2.0),
    "token_kl": lambda s, t: d.token_kl(s, t, MASK),
    "teacher_free": lambda s, t: d.teacher_free(s, LABELS, 5.0, confidence=0.9),
    "ensemble": lambda s, t: d.soft_targets(s, d.ensemble_logits([t, t + 1])),
    "ensemble of logits": lambda s, t: d.soft_targets(s, d.ensemble_logits([t, 2 * t], average="logits")),
    "labels": lambda s, t: cross_entropy(s, LABELS),
    "smoothed labels": lambda s, t: cross_entropy(s, LABELS, label_smoothing=0.1),
}
PLACES = {
    "one class": [(slice(None), 2)],
    "the label's class": [(i, int(c)) for i, c in enumerate(LABELS)],
    "all but one": [(slice(None), slice(1, None))],
    "all but the label's": [(i, [c for c in range(5) if c != label]) for i, label in enumerate(LABELS)],
    "all but one that is no label's": [(slice(None), [0, 1, 2, 3])],
}


def drawn(where: list, masked: str, low: float) -> list[np.ndarray]:
    rng = np.random.default_rng(41)
    both = [rng.normal(scale=2, size=(4, 5)) for _ in range(2)]
    for place in where:
        for logits, who in zip(both, ("student", "teacher")):
            if masked in (who, "both"):
                logits[place] = low
    return both


@pytest.mark.parametrize("masked", ["teacher", "student", "both"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", LOSSES)
def test_the_limit_is_reached_and_gradients_are_finite(name: str, place: str, masked: str) -> None:
    """The limit of logits that fall, all alike: read off at two of them, where what diverges grows in proportion."""
    loss = jax.jit(LOSSES[name])
    student, teacher = (jnp.asarray(x, jnp.float32) for x in drawn(PLACES[place], masked, -np.inf))
    value, grad = jax.jit(jax.value_and_grad(lambda s: jnp.sum(loss(s, teacher))))(student)
    assert np.isfinite(grad).all()

    def at(low: float) -> np.ndarray:
        return np.asarray(loss(*(jnp.asarray(x, jnp.float32) for x in drawn(PLACES[place], masked, low))))

    near, far, got = at(-1e3), at(-1e4), np.asarray(loss(student, teacher))
    assert not np.isnan(got).any()
    falls = np.abs(far - near) > 1
    defined = np.ones(far.shape, bool)
    if name.startswith("dkd"):  # how likely the others are among themselves, where none is possible, has no limit
        others = np.ones((4, 5), bool)
        others[np.arange(4), LABELS] = False
        defined = (np.isfinite(student) & others).any(-1) & (np.isfinite(teacher) & others).any(-1)
    assert np.isposinf(got[falls & defined]).all()
    np.testing.assert_allclose(got[~falls & defined], far[~falls & defined], rtol=2e-5, atol=2e-5)
    if masked != "student" and name not in ("teacher_free", "labels", "smoothed labels"):
        assert np.isfinite(value)


def test_log_total_by_hand() -> None:
    logs = jnp.log(jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
    where = jnp.array([[True, False, True], [True, True, False]])
    value, grad = jax.value_and_grad(lambda x: jnp.sum(jnp.where(jnp.isfinite(y := log_total(x, where)), y, 0)))(logs)
    assert float(value) == pytest.approx(np.log(0.5))
    assert grad.tolist() == [[1, 0, 0], [0, 0, 0]]
