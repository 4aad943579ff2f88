"""Offline distillation: a loss for the ordinary training step, and a thin loop around it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core.arguments import checked
from lepton_jax.core.transform import Transform, by_part, identity
from lepton_jax.core.typing import Array, ModelApply, PyTree
from lepton_jax.distillation.labels import Labelled, on_labels
from lepton_jax.distillation.parts import part
from lepton_jax.distillation.settings import Distill
from lepton_jax.distillation.taps import Outputs, tapped
from lepton_jax.training.classification import classification_loss
from lepton_jax.training.evaluate import Evaluate
from lepton_jax.training.loop import FitSettings, fit
from lepton_jax.training.placement import Placement
from lepton_jax.training.state import TrainState, create
from lepton_jax.training.step import LossFn, Metrics, make_train_step


@checked
def distillation_loss(apply: ModelApply, settings: Distill, *, labelled: Labelled = classification_loss) -> LossFn:
    """Make the loss function of a student for `make_train_step`.

    ``label_weight * loss on the labels + sum weight * term``, the model run once. Parameters are
    ``{"student": ..., "adapters": ...}`` as `with_adapters` makes them, the model's state is ``{"student": ...}``, and the
    batch holds the teacher's outputs as `teacher` (from `taught` or `cached_batches`). No gradient goes to the teacher.
    Any transform can be on the student at the same time: ``by_part({"student": chain(prune(0.9), fake_quant(bits=4))})``.

    Args:
      apply: the student.
      settings: the terms.
      labelled: makes the loss on the labels of a model.

    Returns:
      A `LossFn`; its metrics: those of the loss on the labels, that loss as "label_loss", and each term, unweighted, by the
      name of its loss.

    Raises:
      ValueError: when called, if the batch has no teacher but a term needs one, a tap matches nothing, or shapes don't fit.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.distillation import LogitTerm, TaughtBatch
      >>> from lepton_jax.training import linen_apply
      >>> loss_fn = distillation_loss(linen_apply(nn.Dense(2)), Distill(terms=(LogitTerm(),), label_weight=0.0))
      >>> params = {"student": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}, "adapters": {}}
      >>> batch = TaughtBatch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2, bool), Outputs(jnp.eye(2), {}))
      >>> loss, (_, metrics) = loss_fn(params, {"student": {}}, batch, jax.random.key(0))
      >>> loss.item(), sorted(metrics)
      (0.0, ['error', 'label_loss', 'soft_targets'])
    """
    run = tapped(apply, settings.student_taps, "student")

    def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Array) -> tuple[Array, tuple[PyTree, Metrics]]:
        label_loss, ours, new_state, metrics = on_labels(labelled, run, params["student"], model_state["student"], batch, key)
        theirs = _answers(batch, settings)
        # Not 0 * loss, which is NaN where the loss is infinite.
        total = settings.label_weight * label_loss if settings.label_weight else jnp.zeros_like(label_loss)
        values = {}
        for name, term in zip(settings.names(), settings.terms):
            values[name] = term(params.get("adapters", {}).get(name, {}), ours, theirs, batch)
            total += term.weight * values[name]
        return total, ({"student": new_state}, {**metrics, "label_loss": label_loss, **values})

    return loss_fn


@checked
def with_adapters(
    settings: Distill, apply: ModelApply, params: PyTree, model_state: PyTree, batch: Any, key: Array
) -> dict[str, PyTree]:
    """Return ``{"student": params, "adapters": ...}``: what trains, the terms' adapters in a collection of their own.

    The adapters' shapes are read off the student's graph and the batch; nothing is computed but their initial values.

    Args:
      settings: the terms.
      apply: the student.
      params: its parameters.
      model_state: its other collections.
      batch: any batch of the run, with the teacher's outputs.
      key: random key.

    Raises:
      ValueError: for taps that match nothing or don't pair.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.distillation import FeatureTerm, Linear, TaughtBatch, hints
      >>> from lepton_jax.training import linen_apply
      >>> term = FeatureTerm(loss=hints, student="add", teacher="Dense_0", adapter=Linear())
      >>> answers = Outputs(jnp.eye(2), {"Dense_0": (jnp.ones((2, 3)),)})
      >>> batch = TaughtBatch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2, bool), answers)
      >>> params = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
      >>> both = with_adapters(Distill(terms=(term,)), linen_apply(nn.Dense(2)), params, {}, batch, jax.random.key(0))
      >>> both["adapters"]["hints"]["0"]["kernel"].shape
      (2, 3)
    """
    run = tapped(apply, settings.student_taps, "student")

    def student_outputs(params: PyTree, model_state: PyTree, images: Any) -> Outputs:
        (logits, _), features = run(params, model_state, images, train=False, key=None)
        return Outputs(logits, features)

    ours = jax.eval_shape(student_outputs, params, model_state, batch.images)
    theirs, adapters = _answers(batch, settings), {}
    for number, (name, term) in enumerate(zip(settings.names(), settings.terms)):
        if made := term.init(jax.random.fold_in(key, number), ours, theirs):
            adapters[name] = made
    return {"student": params, "adapters": adapters}


@checked
def distill(
    apply: ModelApply,
    params: PyTree,
    model_state: PyTree,
    batch_at: Callable[[int], Any],
    settings: Distill,
    fit_settings: FitSettings,
    *,
    tx: optax.GradientTransformation,
    key: Array,
    transform: Transform = identity(),
    labelled: Labelled = classification_loss,
    placement: Placement | None = None,
    **options: Any,
) -> TrainState:
    """Train a student on labels and a teacher's answers.

    Args:
      apply: the student.
      params: its parameters.
      model_state: its other collections, or ``{}``.
      batch_at: batches with the teacher's outputs, from `taught`, or `batch_source` of `cached_batches`.
      settings: the terms.
      fit_settings: how long, and how often what.
      tx: the optimiser, for the student and the adapters.
      key: a typed random key.
      transform: the view of the student to train under.
      labelled: makes the loss on the labels of a model.
      placement: how the parameters lie on a mesh; the student's have the prefix "student/".
      **options: of `fit`; an `evaluate` is given the student's part of the state.

    Returns:
      The student's part of the last state.

    Raises:
      ValueError: as `distillation_loss` and `fit`.

    Example:
      >>> from flax import linen as nn
      >>> from lepton_jax.distillation import LogitTerm, TaughtBatch
      >>> from lepton_jax.training import linen_apply
      >>> params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> batch = TaughtBatch(jnp.eye(2), jnp.array([0, 1]), jnp.ones(2, bool), Outputs(2 * jnp.eye(2), {}))
      >>> settings, steps = Distill(terms=(LogitTerm(),)), FitSettings(steps=2, progress=False)
      >>> apply, tx, key = linen_apply(nn.Dense(2)), optax.sgd(0.5), jax.random.key(0)
      >>> state = distill(apply, params, {}, lambda step: batch, settings, steps, tx=tx, key=key)
      >>> bool(state.params["kernel"][0, 0] > 0)
      True
    """
    views = by_part({"student": transform})
    begin, run_key = jax.random.split(key)
    trained = with_adapters(settings, apply, params, model_state, batch_at(0), begin)
    state = create(trained, {"student": model_state}, tx, views, run_key, placement=placement)
    step = make_train_step(distillation_loss(apply, settings, labelled=labelled), tx, views)
    if "evaluate" in options:
        options["evaluate"] = of_student(options["evaluate"])
    return part(fit(state, step, batch_at, fit_settings, placement=placement, **options), "student")


@checked
def of_student(evaluate: Evaluate) -> Evaluate:
    """Return an evaluation of a whole state out of one of the student alone.

    Args:
      evaluate: from `make_evaluate`, with the student's own transform.

    Example:
      >>> state = TrainState(0, {"student": {"w": 2.0}, "adapters": {}}, {"student": {}}, (), {"student": ()}, None)
      >>> of_student(lambda state: {"w": state.params["w"]})(state)
      {'w': 2.0}
    """
    return lambda state: evaluate(part(state, "student"))


def _answers(batch: Any, settings: Distill) -> Outputs:
    if not settings.needs_teacher:
        return Outputs(jnp.zeros(0), {})
    if not hasattr(batch, "teacher"):
        raise ValueError(
            f"the terms {', '.join(settings.names())} need a teacher's outputs, but the batch, a {type(batch).__name__}, has "
            "no `teacher`. Use taught(batch_at, teach(teacher, settings.teacher_taps)), or cached_batches."
        )
    return jax.lax.stop_gradient(batch.teacher)
