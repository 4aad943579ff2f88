"""What students learn from in the studies of distillation, for a student and a teacher of two hidden layers."""

from functools import partial

from experiments.studies.distillation.study import Row
from lepton_jax.distillation import (
    Distill,
    FeatureTerm,
    Linear,
    LogitTerm,
    attention_transfer,
    dkd,
    hints,
    rkd_distance,
    soft_targets,
)

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
_HIDDEN = ("Dense_0", "Dense_1")


def hinton(temperature: float, bits: int | None = None) -> Row:
    """Return the row of soft targets at a temperature."""
    term = LogitTerm(loss=partial(soft_targets, temperature=temperature), weight=0.1)
    settings = Distill(terms=(term,), label_weight=0.9)
    return Row(name=f"hinton_t{temperature:g}", distill=settings, bits=bits, temperature=temperature)


def rows(bits: int) -> tuple[Row, ...]:
    """Return every method in float32, and soft targets at some bits too.

    Weights were chosen on validation data of Fashion-MNIST, of two or three tried for each loss, and soft targets' for
    temperatures 1, 4 and 8 together. Units of dense layers have no common places, so attention is compared after an adapter,
    as hints are. RKD is its distances alone, since the angles of all triples take several times as long as the rest of a step.
    """
    terms: dict[str, LogitTerm | FeatureTerm] = {
        "dkd": LogitTerm(loss=partial(dkd, temperature=4.0, beta=1.0), weight=0.2),
        "fitnets": FeatureTerm(loss=hints, student=_HIDDEN, teacher=_HIDDEN, adapter=Linear(), weight=0.1),
        "at": FeatureTerm(loss=attention_transfer, student=_HIDDEN, teacher=_HIDDEN, adapter=Linear(), weight=1.0),
        "rkd": FeatureTerm(loss=rkd_distance, student="Dense_1", teacher="Dense_1", weight=10.0),
    }
    return (
        Row(name="none"),
        *(hinton(temperature) for temperature in TEMPERATURES),
        *(Row(name=name, distill=Distill(terms=(term,))) for name, term in terms.items()),
        Row(name="none", bits=bits),
        *(hinton(temperature, bits) for temperature in TEMPERATURES),
    )
