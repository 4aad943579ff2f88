"""What every quantizer of weights shares: it rounds one array, and a tree of them is the same again and again."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lepton_jax.core import paths
from lepton_jax.core.errors import collect
from lepton_jax.core.finite import check_finite
from lepton_jax.core.packed import is_coded, unpack
from lepton_jax.core.transform import State, Transform, hold
from lepton_jax.core.typing import Array, Path, PyTree, Select, Step
from lepton_jax.core.weight_axes import axes_of
from lepton_jax.formats import Format, expand
from lepton_jax.formats.layout import problem
from lepton_jax.leaves.qarray import QArray

F = TypeVar("F", bound=Format)


def on_weights(
    name: str,
    fmt: F,
    select: Select,
    *,
    seen: Callable[[Array, F, State, int], Array],
    coded: Callable[[Array, F, State, int], Any],
    state: Callable[[], State] = tuple,
    update: Callable[[PyTree, State, PyTree, Step], tuple[PyTree, State]] = hold,
    refused: Callable[[Array, F], str | None] = lambda w, fmt: None,
) -> Transform:
    """Return the transform that rounds every selected weight; an earlier transform's coded leaf is rounded anew.

    Args:
      name: of the method, for errors.
      fmt: the number format; leaves that it does not fit are refused when the transform is initialised.
      select: which leaves.
      seen: ``(w, fmt, state, place) -> w`` as the model sees it, differentiable; the format is the leaf's, see `Format.at`, the
        place that among the selected weights.
      coded: ``(w, fmt, state, place) -> packed leaf`` of the same values.
      state: makes the first state.
      update: as of a transform.
      refused: says what else is wrong with a weight, if anything is.

    Raises:
      ValueError: from `init`, for a selector that matches nothing, or with every leaf that is refused; those that only the
        values show, among them NaN, from `pack`, too.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.formats import Uniform
      >>> from lepton_jax.leaves.quantize import quantize
      >>> rounding = {"seen": lambda w, *_: jnp.round(w), "coded": lambda w, fmt, *_: quantize(w, fmt)}
      >>> whole = on_weights("whole", Uniform(8), "*", **rounding)
      >>> params, state = whole.init({"w": jnp.array([0.2, 1.7])})
      >>> whole.view(params, state)["w"].tolist()
      [0.0, 2.0]
    """
    paths.check_select(f"{name}: select", select)

    def of(path: Path, w: Array) -> F:
        return fmt.at(axes_of(select, path, w.shape))

    def check(heading: str, weights: Mapping[Path, Array], wrong_with: Callable[[Array, F], str | None]) -> None:
        with collect(f"{name}: {fmt} {heading}") as problems:
            problems.extend(f"{path}: {wrong}." for path, w in weights.items() if (wrong := wrong_with(w, of(path, w))))

    def selected(params: PyTree) -> dict[Path, Array]:
        found = paths.flatten(params, is_coded)
        return {p: unpack(x) for p, x in found.items() if paths.is_floating(x) and paths.matches(select, p, x, found)}

    def init(params: PyTree) -> tuple[PyTree, State]:
        weights = paths.select(params, select)
        check("does not fit", weights, lambda w, fmt: problem(w.shape, fmt) or refused(w, fmt))
        check_finite(name, weights)
        return params, state()

    def view(params: PyTree, state: State) -> PyTree:
        weights = enumerate(selected(params).items())
        return paths.replace(params, {path: seen(w, of(path, w), state, place) for place, (path, w) in weights}, is_coded)

    def pack(params: PyTree, state: State) -> PyTree:
        weights = selected(params)
        check_finite(name, weights)
        check("cannot hold", weights, refused)
        leaves = {path: coded(w, of(path, w), state, place) for place, (path, w) in enumerate(weights.items())}
        return paths.replace(params, leaves, is_coded)

    return Transform(init, view, update, pack)


def packed_levels(levels: Array, scale: Array, zero_point: Array, fmt: Format, dtype: Any) -> QArray:
    """Return an array that is on a grid's levels, or near them, as a packed leaf.

    Args:
      levels: of the leaf's shape.
      scale: in the format's layout.
      zero_point: likewise.
      fmt: the number format.
      dtype: of the dense leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.formats import Uniform
      >>> grid = jnp.float32([2.0]), jnp.int32([0])
      >>> packed_levels(jnp.array([2.0, -4.0]), *grid, Uniform(bits=4), jnp.float32).qvalue.tolist()
      [1, -2]
    """
    wide = (expand(part, levels.shape, fmt) for part in (scale.astype("float32"), zero_point))
    return QArray.from_qvalue(fmt.to_codes(levels, *wide), scale, zero_point, fmt, dtype)
