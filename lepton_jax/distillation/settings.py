"""What a student learns from, as data."""

from dataclasses import dataclass

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import collect
from lepton_jax.core.kinds import check_kind
from lepton_jax.distillation.terms import Term


@checked_but("terms")
@dataclass(frozen=True, kw_only=True)
class Distill:
    """What a student learns from: labels and any number of weighted terms.

    ``loss = label_weight * (loss on the labels) + sum weight * term``.

    Args:
      terms: `LogitTerm` and `FeatureTerm`; none is plain training.
      label_weight: of the whole loss on the labels, a penalty in it included; 0 or more.

    Raises:
      ValueError: for weights out of range, or nothing to learn from.
      TypeError: for something that is no term.

    Example:
      >>> from lepton_jax.distillation import LogitTerm
      >>> Distill(terms=(LogitTerm(weight=0.9),), label_weight=0.1)
      Distill(terms=(LogitTerm(loss=soft_targets, weight=0.9),), label_weight=0.1)
    """

    terms: tuple[Term, ...] = ()
    label_weight: float = 1.0

    def __post_init__(self) -> None:
        check_kind("Distill: terms", self.terms, tuple)
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"Distill: terms are LogitTerm or FeatureTerm; got a {type(term).__name__}.")
        with collect("Distill") as problems:
            if not self.label_weight >= 0:
                problems.append(f"label_weight: must be 0 or more; got {self.label_weight}")
            elif not self.label_weight and not any(term.weight for term in self.terms):
                problems.append("nothing to learn from: give a term or label_weight a weight above 0")

    @property
    def student_taps(self) -> tuple[str, ...]:
        """All patterns of the student's features."""
        return tuple(dict.fromkeys(tap for term in self.terms for tap in term.student_taps))

    @property
    def teacher_taps(self) -> tuple[str, ...]:
        """All patterns of the teacher's features: what its outputs have to hold."""
        return tuple(dict.fromkeys(tap for term in self.terms for tap in term.teacher_taps))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return any(term.needs_teacher for term in self.terms)

    def names(self) -> tuple[str, ...]:
        """Return a name for each term, unique: the name of its loss, numbered where it comes again."""
        names: list[str] = []
        for term in self.terms:
            before = sum(other.name == term.name for other in self.terms[: len(names)])
            names.append(f"{term.name}_{before}" if before else term.name)
        return tuple(names)
