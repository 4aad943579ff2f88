"""The terms of a distillation, as data: each a loss function, its weight, and what it looks at."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.distillation.adapters import Adapter, Plain
from lepton_jax.distillation.logits import soft_targets
from lepton_jax.distillation.taps import Outputs


@dataclass(frozen=True, kw_only=True, repr=False)
class Term:
    """Base of all terms: a weighted loss, which taps it needs, and what it learns beside the student.

    Args:
      loss: a function.
      weight: 0 or more.

    Raises:
      ValueError: for a weight below 0.
    """

    loss: Callable[..., Array]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"{type(self).__name__}: weight must be 0 or more; got {self.weight}.")

    @property
    def name(self) -> str:
        """The loss function's name."""
        return _function_name(self.loss)

    @property
    def student_taps(self) -> tuple[str, ...]:
        """The student's patterns."""
        return ()

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """The teacher's patterns."""
        return ()

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss looks at a teacher."""
        return True

    def init(self, key: Array, student: Outputs, teacher: Outputs) -> dict[str, PyTree]:
        """Return the adapters' parameters for outputs of these shapes; only shapes are read."""
        return {}

    def __call__(self, params: dict[str, PyTree], student: Outputs, teacher: Outputs, batch: Any) -> Array:
        """Return the unweighted loss, a scalar; `params` are those of `init`."""
        raise TypeError(f"{type(self).__name__} does not say what it compares")


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class LogitTerm(Term):
    """A weighted loss on the student's logits.

    Args:
      loss: a function of some of ``student_logits``, ``teacher_logits``, ``labels`` and ``mask``, by these names, that gives a
        scalar or one number an example: `soft_targets`, `dkd`, `dist`, ..., one of your own; settings by
        `functools.partial`.
      weight: 0 or more; per-example losses are averaged.

    Raises:
      ValueError: for a weight below 0.
      TypeError: if `loss` requires something else.

    Example:
      >>> LogitTerm(loss=functools.partial(soft_targets, temperature=4.0), weight=0.9)
      LogitTerm(loss=soft_targets(temperature=4.0), weight=0.9)
    """

    loss: Callable[..., Array] = soft_targets

    def __post_init__(self) -> None:
        super().__post_init__()
        required = {n for n, p in inspect.signature(self.loss).parameters.items() if p.default is p.empty}
        if unknown := required - {"student_logits", "teacher_logits", "labels", "mask"}:
            raise TypeError(
                f"LogitTerm: {self.name} requires {', '.join(sorted(unknown))}, but is given student_logits, teacher_logits, "
                "labels and mask. Set the rest by functools.partial."
            )

    def __repr__(self) -> str:
        return f"LogitTerm(loss={_shown(self.loss)}, weight={self.weight})"

    @property
    def needs_teacher(self) -> bool:
        return "teacher_logits" in inspect.signature(self.loss).parameters

    def __call__(self, params: dict[str, PyTree], student: Outputs, teacher: Outputs, batch: Any) -> Array:
        given = {"student_logits": lambda: student.logits, "teacher_logits": lambda: teacher.logits}
        given |= {"labels": lambda: batch.labels, "mask": lambda: batch.mask}
        takes = inspect.signature(self.loss).parameters
        return jnp.mean(self.loss(**{name: get() for name, get in given.items() if name in takes}))


@checked
@dataclass(frozen=True, kw_only=True, repr=False)
class FeatureTerm(Term):
    """A weighted loss on features tapped from both models.

    Args:
      loss: a function of what `adapter` returns: ``loss(student, teacher)`` for most.
      student: patterns of the student's taps, see `tapped`.
      teacher: patterns of the teacher's taps; as many values must match as for the student, they are paired in order.
      weight: 0 or more, of the mean over the pairs.
      adapter: `Plain`, `Linear`, `Gaussian` (for `vid`), `Projections` (for `crd`), or one of your own.
      together: give the loss all pairs at once, as tuples (for `fsp`), instead of one after another.

    Raises:
      ValueError: for a weight below 0, or no tap.

    Example:
      >>> from lepton_jax.distillation import Linear, hints
      >>> FeatureTerm(loss=hints, student="Dense_0", teacher="Dense_0", adapter=Linear(), weight=0.1)
      FeatureTerm(loss=hints, student=('Dense_0',), teacher=('Dense_0',), weight=0.1, adapter=Linear())
    """

    student: str | tuple[str, ...]
    teacher: str | tuple[str, ...]
    adapter: Adapter = field(default_factory=Plain)
    together: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.student_taps or not self.teacher_taps:
            raise ValueError(f"FeatureTerm: {self.name} needs a tap of the student and one of the teacher, e.g. 'Dense_0'.")

    def __repr__(self) -> str:
        joint = ", together=True" if self.together else ""
        return (
            f"FeatureTerm(loss={_shown(self.loss)}, student={self.student_taps}, teacher={self.teacher_taps}, "
            f"weight={self.weight}, adapter={self.adapter}{joint})"
        )

    @property
    def student_taps(self) -> tuple[str, ...]:
        return (self.student,) if isinstance(self.student, str) else tuple(self.student)

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)

    def pairs(self, student: Outputs, teacher: Outputs) -> list[tuple[str, Array, Array]]:
        """Return what is compared: ``(where, student's value, teacher's value)``.

        Raises:
          ValueError: if the taps match different numbers of values, or the teacher's outputs lack a tap.
        """
        if lacking := [tap for tap in self.teacher_taps if tap not in teacher.features]:
            raise ValueError(
                f"{self.name}: the teacher's outputs have no features for {', '.join(lacking)}; there are: "
                f"{', '.join(teacher.features) or 'none'}. Make them with the settings' teacher_taps."
            )
        ours = _labelled(student, self.student_taps)
        theirs = _labelled(teacher, self.teacher_taps)
        if len(ours) != len(theirs):
            raise ValueError(
                f"{self.name}: taps are paired in order, but the student's {self.student_taps} match {len(ours)} values and "
                f"the teacher's {self.teacher_taps} match {len(theirs)}. Name as many of each."
            )
        return [(f"student {a}, teacher {b}", x, y) for (a, x), (b, y) in zip(ours, theirs)]

    def init(self, key: Array, student: Outputs, teacher: Outputs) -> dict[str, PyTree]:
        adapters = {
            str(i): self.adapter.init(jax.random.fold_in(key, i), x, y)
            for i, (_, x, y) in enumerate(self.pairs(student, teacher))
        }
        return {i: params for i, params in adapters.items() if params}

    def __call__(self, params: dict[str, PyTree], student: Outputs, teacher: Outputs, batch: Any) -> Array:
        pairs, adapted = self.pairs(student, teacher), []
        for i, (place, x, y) in enumerate(pairs):
            with _at(place):
                adapted.append(self.adapter(params.get(str(i), {}), x, y))
        if self.together:
            with _at("; ".join(place for place, _, _ in pairs)):
                return jnp.mean(self.loss(*zip(*adapted)))
        losses = []
        for (place, _, _), arguments in zip(pairs, adapted):
            with _at(place):
                losses.append(jnp.mean(self.loss(*arguments)))
        return jnp.mean(jnp.stack(losses))


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say in a loss's error which taps it was given."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error} At {place}.") from error


def _labelled(outputs: Outputs, taps: tuple[str, ...]) -> list[tuple[str, Array]]:
    return [
        (f"{tap!r} {tuple(value.shape)}" + (f" (match {i})" if len(outputs.features[tap]) > 1 else ""), value)
        for tap in taps
        for i, value in enumerate(outputs.features[tap])
    ]


def _function_name(loss: Callable[..., Array]) -> str:
    function = loss.func if isinstance(loss, functools.partial) else loss
    return getattr(function, "__name__", type(function).__name__)


def _shown(loss: Callable[..., Array]) -> str:
    """The function with its settings; unlike its own repr the same in every process."""
    settings = loss.keywords if isinstance(loss, functools.partial) else {}
    return _function_name(loss) + (f"({', '.join(f'{k}={v!r}' for k, v in settings.items())})" if settings else "")
