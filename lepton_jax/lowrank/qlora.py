"""QLoRA: train a low-rank correction of quantized weights."""

from functools import partial
from typing import Any

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.core.transform import Transform, named
from lepton_jax.core.typing import Array, Path, Select
from lepton_jax.core.weight_axes import axes_of
from lepton_jax.formats import Format, Uniform, named_format
from lepton_jax.formats.ranges import Calibration, MinMax
from lepton_jax.formats.ranges.base import check_calibration
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.quantize import quantize
from lepton_jax.lowrank.adapters import adapter, corrected
from lepton_jax.lowrank.loftq import loftq
from lepton_jax.lowrank.method import placed
from lepton_jax.lowrank.svd import Svd


@checked
@named
def qlora(
    rank: int,
    key: Array,
    *,
    format: Format | int | str = Uniform(bits=4, channel_axis="out"),
    calibration: Calibration = MinMax(),
    rounds: int = 0,
    scale: float = 1.0,
    select: Select = paths.matrices,
    train: Select = (),
    stacked: int = 0,
) -> Transform:
    """Quantize each selected weight once, and train a correction of low rank: ``view = dequantize(Q) + scale * u v``.

    As `lora`, with the fixed weight as a `QArray` in the state: for 4 bits an eighth of float32's memory, and a packed form
    that is stored so. Under a `Placement` the codes, one row of bytes, lie whole on every device. With ``rounds=0`` the
    correction begins at zero (QLoRA); with more, at what makes up most for the rounding (LoftQ, see `loftq`).

    Args:
      rank: of the corrections, 1 to the smaller side of every selected weight.
      key: a typed random key, for u; not drawn from with rounds.
      format: any that `lepton_jax.quantization.quantize` takes, or its short name: "int4_g64", "nf4".
      calibration: finds the range of the format.
      rounds: of LoftQ, 0 or more; the paper takes 1 to 5.
      scale: alpha / rank of the paper.
      select: which weights are adapted.
      train: other leaves that are trained as they are; by default none.
      stacked: leading axes of weights that stack layers, each with a correction of its own.

    Raises:
      ValueError: for settings out of range, weights that have no such rank, or a pattern that matches nothing.
      TypeError: for a key that is no typed key.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> transform = qlora(1, jax.random.key(0))
      >>> params, state = transform.init({"kernel": jnp.array([[7.5, 0.4], [-2.2, 7.5]])})
      >>> state.base["kernel"].words.size, transform.view(params, state)["kernel"].tolist()
      (2, [[7.0, 0.0], [-2.0, 7.0]])

    Source: Dettmers et al. 2023, "QLoRA: efficient finetuning of quantized LLMs", section 3, without double quantization and
    paging; Li et al. 2024, "LoftQ", algorithm 1.
    """
    check_whole("qlora: rounds", rounds, 0)
    fmt: Format = named_format("qlora: format", format)
    if not isinstance(fmt, Format):
        raise TypeError(f"qlora: format must be a number format, e.g. Uniform(bits=4) or 'nf4'; got {format!r}.")
    check_calibration("qlora", calibration)

    def begin(weights: dict[Path, Array], corrections: dict[Path, LowRank]) -> tuple[dict[Path, LowRank], dict[Path, Any]]:
        formats = {path: fmt.at(axes_of(select, path, weight.shape)) for path, weight in weights.items()}
        if not rounds:
            return corrections, {path: quantize(weight, formats[path], calibration) for path, weight in weights.items()}
        method: Any = placed(Svd(stacked=stacked), select, weights)
        fit = partial(loftq, rank=rank, calibration=calibration, rounds=rounds)
        both = {path: fit(weight, format=formats[path], method=method.at(path)) for path, weight in weights.items()}
        found = {path: leaf.correction for path, leaf in both.items()}
        trained = {path: LowRank(leaf.u / scale, leaf.v, leaf.shape) for path, leaf in found.items()}
        return trained, {path: leaf.base for path, leaf in both.items()}

    show = partial(corrected, scale=scale)
    return adapter("qlora", rank, key, scale, select, train, stacked, begin=begin, show=show)
