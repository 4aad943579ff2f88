"""The rows of an ablation of deep compression: every stage left out, and the sparsities of a curve."""

import dataclasses
from collections.abc import Callable, Sequence

from experiments.common.config import Config, Phase
from experiments.common.methods import FakeQuant, LearnedStepSize, Method, Prune, TrainedCodebook


def stages_off(config: Config) -> dict[str, Config]:
    """Return the config whole, and with each stage left out; all rows train for the same epochs.

    Example:
      >>> from experiments.common.config import Digits
      >>> from lepton_jax.models import LeNet300
      >>> phases = Phase(name="dense", epochs=1), Phase(name="pruned", epochs=1, transforms=(Prune(sparsity=0.5),))
      >>> rows = stages_off(Config(name="some", data=Digits(), model=LeNet300(), phases=phases))
      >>> list(rows), rows["no_pruning"].phases[1].transforms
      (['whole', 'no_pruning'], ())
    """
    rows = {
        "whole": config,
        "no_pruning": _without(config, Prune),
        "no_codebook": _without(config, TrainedCodebook),
        "no_learned_steps": _without(config, LearnedStepSize),
        "no_bias_bits": _without(config, FakeQuant),
        "pruning_alone": _without(config, TrainedCodebook, LearnedStepSize, FakeQuant),
        "no_l2": _phases(config, lambda phase: dataclasses.replace(phase, l2=0.0)),
        "no_augmentation": dataclasses.replace(config, warp=None),
    }
    changed = {row: made for row, made in rows.items() if row == "whole" or made != config}
    return {row: dataclasses.replace(made, name=f"{config.name}_{row}") for row, made in changed.items()}


def sizes(config: Config, kept: Sequence[float]) -> dict[str, Config]:
    """Return the config with other numbers of weights kept, each a factor of its own."""

    def prune(method: Method, factor: float) -> Method:
        if not isinstance(method, Prune):
            return method
        return dataclasses.replace(method, sparsity=1 - factor * (1 - method.sparsity))

    rows = {}
    for factor in kept:
        phases = [_methods(phase, tuple(prune(method, factor) for method in phase.transforms)) for phase in config.phases]
        row = f"weights_x{factor:g}"
        rows[row] = dataclasses.replace(config, name=f"{config.name}_{row}", phases=tuple(phases))
    return rows


def _without(config: Config, *kinds: type) -> Config:
    return _phases(config, lambda p: _methods(p, tuple(method for method in p.transforms if not isinstance(method, kinds))))


def _methods(phase: Phase, methods: tuple[Method, ...]) -> Phase:
    return dataclasses.replace(phase, transforms=methods)


def _phases(config: Config, change: Callable[[Phase], Phase]) -> Config:
    return dataclasses.replace(config, phases=tuple(change(phase) for phase in config.phases))
