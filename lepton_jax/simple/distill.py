"""Distillation: a small model learns what a large one answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from lepton_jax.artifact import Artifact
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import check_whole, collect
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.simple.masters import Masters
from lepton_jax.simple.model import Applied, Model, check_model

if TYPE_CHECKING:  # half a second to import, which only training has to wait for
    import optax

    from lepton_jax.training import LossFn, Metrics


class _Batch(NamedTuple):
    inputs: Any
    labels: Any
    teacher_logits: Any


@checked_but("student", "teacher")
def distill_model(
    student: Model,
    teacher: Model,
    data: Any,
    *,
    steps: int = 1000,
    batch_size: int = 128,
    temperature: float = 4.0,
    label_weight: float = 0.1,
    learning_rate: float = 1e-3,
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Return the student, trained to answer as the teacher does.

    ``loss = (1 - a) T^2 KL(softmax(t / T) || softmax(s / T)) + a cross_entropy(s, labels)``; without labels, a is 0.
    The teacher answers once for every example, before training.

    The student's form stays: pruned weights stay zero, quantized leaves are trained through their rounding, of codebooks the
    entries are trained, of low-rank leaves the factors. Only the variables under "params" are trained, if there are such;
    the function is the model's own, in evaluation mode, so batch statistics stay as they are.

    Args:
      student: a model with a derivative (not one of `load_model`), not changed.
      teacher: any model with as many outputs; or the student's dense self, to repair what a technique has lost.
      data: inputs ``[N, ...]``, or a pair (inputs, integer labels ``[N]``); inputs may be a tree of arrays.
      steps: of training.
      batch_size: at most N.
      temperature: T, above 0.
      label_weight: a, in [0, 1].
      learning_rate: of Adam, falling to 0 by a cosine.
      optimizer: in place of that.
      seed: of the order of examples.
      progress: show a bar, if the error stream is a terminal.

    Raises:
      ValueError: for settings out of range, data of unequal lengths, or a student that cannot be trained.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (64, 3))
      >>> teacher = Model(lambda v, x: x @ v["w"], {"w": 2 * jnp.eye(3)})
      >>> student = dataclasses.replace(teacher, variables={"w": jnp.zeros((3, 3))})
      >>> student = distill_model(student, teacher, x, steps=60, batch_size=32, learning_rate=0.1, progress=False)
      >>> bool((student(x).argmax(1) == teacher(x).argmax(1)).mean() > 0.9)
      True

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
    """
    from lepton_jax.training import FitSettings, create, fit, make_train_step

    check_model("distill_model: student", student)
    check_model("distill_model: teacher", teacher)
    inputs, labels = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    count = _check(inputs, labels, batch_size, temperature, label_weight)
    check_whole("distill_model: steps", steps, 1)
    if isinstance(getattr(student.apply, "__self__", None), Artifact):
        raise ValueError(
            "distill_model: the student is the program of a file, which has no derivative; make it of the original function: "
            "Model(apply, load_model(path).variables)."
        )
    weight = 0.0 if labels is None else label_weight
    logits = _answers(teacher, inputs, count, batch_size, progress)
    batches = _Batch(inputs, np.zeros(count, np.int32) if labels is None else labels, logits)

    variables = student.variables
    apart = isinstance(variables, Mapping) and "params" in variables
    params = variables["params"] if apart else variables
    rest = {name: tree for name, tree in variables.items() if name != "params"} if apart else {}
    pruned = {path.removeprefix("params/") if apart else path for step in student.applied for path in step.pruned}
    masters = Masters(pruned=frozenset(pruned))
    transform = masters.transform
    tx = optimizer or _adam(learning_rate, steps)
    apply = partial(_apply, student, apart)
    state = create(params, rest, tx, transform, jax.random.key(seed))
    step = make_train_step(_loss(apply, temperature, weight), tx, transform)
    settings = FitSettings(steps=steps, log_every=min(steps, 100), progress=progress)
    state = fit(state, step, partial(_batch_at, batches, count, batch_size, seed), settings, name="distill")
    made = jax.jit(masters.pack)(state.params, state.tstate)
    text = f"distill(steps={steps}, temperature={temperature:g})"
    changed = {**variables, "params": made} if apart else made
    return dataclasses.replace(student, variables=changed, applied=(*student.applied, Applied(text)))


def _adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    import optax

    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))


def _apply(student: Model, apart: bool, params: PyTree, rest: PyTree, inputs: Any) -> Array:
    return student.apply({"params": params, **rest} if apart else params, inputs)


def _loss(apply: Callable[..., Array], temperature: float, label_weight: float) -> LossFn:
    from lepton_jax.distillation import soft_targets
    from lepton_jax.training import cross_entropy

    def loss_fn(params: PyTree, rest: PyTree, batch: _Batch, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        logits = apply(params, rest, batch.inputs)
        loss = (1 - label_weight) * jnp.mean(soft_targets(logits, batch.teacher_logits, temperature))
        if label_weight:
            loss += label_weight * jnp.mean(cross_entropy(logits, batch.labels))
        agree = jnp.argmax(logits, axis=-1) == jnp.argmax(batch.teacher_logits, axis=-1)
        return loss, (rest, {"agreement": jnp.mean(agree)})

    return loss_fn


def _batch_at(batches: _Batch, count: int, size: int, seed: int, step: int) -> _Batch:
    """The batch of a step: a pure function of it; each epoch is in an order of its own."""
    epoch, row = divmod(step, count // size)
    order = np.random.default_rng([seed, epoch]).permutation(count)[row * size : (row + 1) * size]
    return _rows(batches, order)


def _answers(teacher: Model, inputs: Any, count: int, size: int, progress: bool) -> np.ndarray:
    starts = tqdm(range(0, count, size), desc="teacher", unit="batch", disable=None if progress else True)
    return np.concatenate([np.asarray(teacher(_rows(inputs, slice(i, i + size)))) for i in starts])


def _rows(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[rows], tree)


def _check(inputs: Any, labels: Any, batch_size: int, temperature: float, label_weight: float) -> int:
    lengths = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves((inputs, labels))}
    with collect("distill_model") as problems:
        if len(lengths) != 1 or min(lengths, default=0) < 1:
            problems.append(f"data: needs arrays of one length, with examples; got lengths {sorted(lengths)}")
        elif not 1 <= batch_size <= min(lengths):
            problems.append(f"batch_size: must be 1 to {min(lengths)}, the number of examples; got {batch_size}")
        if not temperature > 0:
            problems.append(f"temperature: must be above 0; got {temperature}")
        if not 0 <= label_weight <= 1:
            problems.append(f"label_weight: must be in [0, 1]; got {label_weight}")
    return lengths.pop()
