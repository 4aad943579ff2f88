"""How the weights and activations of a layer are rounded in training, for the study of bits."""

import dataclasses

from lepton_jax import fake_quant
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Path
from lepton_jax.quantization import (
    ActivationQuantizer,
    DoReFa,
    LearnedStep,
    Mse,
    Pact,
    Static,
    TwiceMean,
    Uniform,
    dorefa,
    lsq,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StraightThrough:
    """Ranges of the weights as they are, calibrated ranges of activations (Jacob et al. 2018)."""

    def weights(self, bits: int, select: tuple[Path, ...]) -> Transform:
        return fake_quant(Uniform(bits), select=select)

    def activations(self, bits: int, signed: bool) -> ActivationQuantizer:
        return Static(Uniform(bits, signed=signed), Mse())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lsq:
    """Trained steps, of weights and activations (Esser et al. 2020)."""

    def weights(self, bits: int, select: tuple[Path, ...]) -> Transform:
        return lsq(bits, select=select)

    def activations(self, bits: int, signed: bool) -> ActivationQuantizer:
        return LearnedStep(Uniform(bits, signed=signed), TwiceMean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class LsqPlus:
    """Trained steps of weights, trained steps and offsets of activations (Bhalgat et al. 2020)."""

    def weights(self, bits: int, select: tuple[Path, ...]) -> Transform:
        return lsq(bits, select=select, calibration=Mse())

    def activations(self, bits: int, signed: bool) -> ActivationQuantizer:
        return LearnedStep(Uniform(bits, symmetric=False), Mse())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PactAndDoReFa:
    """Trained clipping of activations, weights squashed by tanh (Choi et al. 2018); weights keep their size."""

    def weights(self, bits: int, select: tuple[Path, ...]) -> Transform:
        return dorefa(bits, scale="kept", select=select)

    def activations(self, bits: int, signed: bool) -> ActivationQuantizer:
        return Pact(bits, signed=signed, calibration=Mse())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoReFaNet:
    """Activations in [0, 1], weights squashed by tanh (Zhou et al. 2016); weights keep their size."""

    def weights(self, bits: int, select: tuple[Path, ...]) -> Transform:
        return dorefa(bits, scale="kept", select=select)

    def activations(self, bits: int, signed: bool) -> ActivationQuantizer:
        return DoReFa(bits)


QatMethod = StraightThrough | Lsq | LsqPlus | PactAndDoReFa | DoReFaNet
