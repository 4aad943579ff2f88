"""Progressive distillation: features first, layer by layer, then everything else."""

from collections.abc import Callable
from typing import TypeVar

from lepton_jax.core.arguments import checked
from lepton_jax.distillation.settings import Distill
from lepton_jax.distillation.terms import FeatureTerm

State = TypeVar("State")
"""Of whatever training it is."""


@checked
def stages(settings: Distill) -> tuple[Distill, ...]:
    """Split a distillation into stages: each feature term alone, in order, then labels and logit terms.

    While a feature term is learned nothing flows to the layers behind its tap, so the student grows from the front.

    Args:
      settings: feature terms in the order of the layers.

    Returns:
      One or more settings, one a stage.

    Raises:
      ValueError: if there is no feature term, or nothing is left for the last stage.

    Example:
      >>> from lepton_jax.distillation import LogitTerm, hints
      >>> hint = FeatureTerm(loss=hints, student="Dense_0", teacher="Dense_0")
      >>> [stage.names() for stage in stages(Distill(terms=(hint, LogitTerm())))]
      [('hints',), ('soft_targets',)]

    Source: Romero et al. 2015, "FitNets", section 2.3 (one hint, then soft targets), taken to several layers.
    """
    features = [term for term in settings.terms if isinstance(term, FeatureTerm)]
    if not features:
        raise ValueError("stages: needs a FeatureTerm to begin with; without one, a single stage is all there is.")
    last = Distill(terms=tuple(t for t in settings.terms if t not in features), label_weight=settings.label_weight)
    return (*(Distill(terms=(term,), label_weight=0.0) for term in features), last)


@checked
def progressively(settings: Distill, train: Callable[[int, Distill, State], State], state: State) -> State:
    """Train a student stage by stage, each beginning with the parameters that the one before ended with.

    Args:
      settings: see `stages`.
      train: ``train(number, settings, state) -> state``, one stage; normally `distill` with the state's parameters.
      state: the student to begin with.

    Returns:
      The state after the last stage.

    Raises:
      ValueError: as `stages`.

    Example:
      >>> from lepton_jax.distillation import LogitTerm, hints
      >>> hint = FeatureTerm(loss=hints, student="Dense_0", teacher="Dense_0")
      >>> log = lambda number, settings, state: [*state, (number, settings.names())]
      >>> progressively(Distill(terms=(hint, LogitTerm())), log, [])
      [(0, ('hints',)), (1, ('soft_targets',))]
    """
    for number, stage in enumerate(stages(settings)):
        state = train(number, stage, state)
    return state
