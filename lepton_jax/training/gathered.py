"""Weights that are gathered in few bits: under FSDP the codes go over the wire, not the floats."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import collect
from lepton_jax.core.packed import is_coded, is_packed, unpack, unpack_coded
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import State, Transform, chain, hold, named
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.core.weight_axes import axes_of
from lepton_jax.formats import Uniform
from lepton_jax.formats.base import rounded
from lepton_jax.formats.layout import problem
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.rounding import calibrated, codes_of, values_of
from lepton_jax.training.placement import Placement


@checked
@named
def gathered(transform: Transform, placement: Placement, *, bits: int = 8, select: Select = paths.matrices) -> Transform:
    """Show what a transform shows in few bits, and gather these over the devices in place of floats.

    * 8 bits: each device rounds its part; codes (int8) and a scale for each output channel are gathered over the axis of the
      batch, and become floats where they are used. The view is that of ``chain(transform, fake_quant(8))`` bit for bit, on any
      number of devices; a step sends about a quarter of the bytes.
    * 16 bits: weights are rounded to bfloat16, gathered as that, half the bytes, and shown in their own dtype.
    * 32 bits: floats are gathered as they are; the view is the transform's own.

    Gradients go straight through the rounding and are added up over the devices in the dtype of the view. So 16 bits are the
    usual mixed precision of several devices: bfloat16 out, float32 back. Without `gathered` the compiler chooses what moves,
    weights or activations; with it weights move, as ZeRO has it.

    Axes of a mesh other than the batch's (tensor parallel) stay as they lie. Of factored leaves the factors are rounded and
    gathered, and multiplied on each device.

    Args:
      transform: any; `lepton_jax.identity` for plain training.
      placement: how the parameters lie, as given to `create`.
      bits: 8, 16 or 32.
      select: which leaves of what the transform shows; of factored leaves the factors.

    Raises:
      ValueError: for other bits; when used, if the placement does not fit the parameters.

    Example:
      >>> from lepton_jax import identity
      >>> from lepton_jax.training import data_mesh, fsdp
      >>> transform = gathered(identity(), fsdp(data_mesh(jax.devices()[:1])))
      >>> params, state = transform.init({"w": jnp.array([[127.5, 1.2], [0.4, 255.0]])})
      >>> transform.view(params, state)["w"].tolist()
      [[127.0, 2.0], [0.0, 254.0]]

    Source: Wang et al. 2023, "ZeRO++", section 3.1 (there blocks of weights share a scale); Rajbhandari et al. 2020, ZeRO.
    """
    if bits not in (8, 16, 32):
        raise ValueError(f"gathered: bits must be 8 (integer codes), 16 (bfloat16) or 32 (floats as they are); got {bits}.")
    paths.check_select("gathered: select", select)
    both = chain(transform, _rounding(bits, select))

    def view_leaves(params: PyTree, states: State) -> PyTree:
        shown = unpack_coded(transform.view_leaves(params, states[0]))
        lies = paths.flatten(placement.shardings(shown, jax.eval_shape(transform.view, params, states[0])))
        found = paths.flatten(shown)
        wanted = [path for path, leaf in found.items() if paths.is_floating(leaf) and paths.matches(select, path, leaf, found)]
        return paths.replace(shown, {path: arrives(path, found[path], lies[path]) for path in wanted})

    def arrives(path: Path, weight: Array, lies: NamedSharding) -> Array:
        held = jax.lax.stop_gradient(weight)
        if bits == 8:
            seen = _through_codes(held, _format(select, path, weight), lies, placement.batch_axis)
        elif bits == 16:
            seen = _through_halves(held, lies, placement.batch_axis)
        else:
            seen = _gather(held, lies, placement.batch_axis)
        return straight_through(weight, seen)

    def view(params: PyTree, states: State) -> PyTree:
        leaves = view_leaves(params, states)
        factored = [path for path, leaf in paths.flatten(leaves, is_packed).items() if is_packed(leaf)]
        dense = unpack(leaves)
        if not factored:
            return dense
        products, lies = paths.flatten(dense), paths.flatten(placement.shardings(dense, dense))
        whole = {path: _without(lies[path], placement.batch_axis) for path in factored}
        return paths.replace(dense, {path: _held(products[path], whole[path]) for path in factored})

    return both._replace(view=view, view_leaves=view_leaves, pack=both.pack)


def _through_codes(weight: Array, fmt: Uniform, lies: NamedSharding, axis: str) -> Array:
    scale, zero_point = calibrated(weight, fmt)
    scale = _lay(rounded(scale, fmt.scale_dtype), NamedSharding(lies.mesh, PartitionSpec()))
    codes = _gather(codes_of(weight, scale, zero_point, fmt), lies, axis)
    return values_of(codes, scale, zero_point, fmt, weight.dtype)


def _through_halves(weight: Array, lies: NamedSharding, axis: str) -> Array:
    # As integers: a compiler that computes bfloat16 in float32 would send it so, too.
    bits = jax.lax.bitcast_convert_type(weight.astype(jnp.bfloat16), jnp.uint16)
    return jax.lax.bitcast_convert_type(_gather(bits, lies, axis), jnp.bfloat16).astype(weight.dtype)


def _held(product: Array, whole: NamedSharding) -> Array:
    """Say how an array lies, but not how its gradient does."""
    return straight_through(product, _lay(jax.lax.stop_gradient(product), whole))


def _gather(codes: Array, lies: NamedSharding, axis: str) -> Array:
    """Say that an array is made as it lies, and only then gathered: else the compiler gathers what it is made of."""
    return _lay(_lay(codes, lies), _without(lies, axis))


def _without(lies: NamedSharding, axis: str) -> NamedSharding:
    """Return how an array lies once it is gathered over an axis of the mesh."""
    entries = (entry if isinstance(entry, tuple) else (entry,) for entry in lies.spec)
    kept = (tuple(name for name in names if name not in (None, axis)) for names in entries)
    return NamedSharding(lies.mesh, PartitionSpec(*(names or None for names in kept)))


def _lay(x: Array, lies: NamedSharding) -> Array:
    return x if lies.mesh.size == 1 else jax.lax.with_sharding_constraint(x, lies)


def _rounding(bits: int, select: Select) -> Transform:
    """The last of the chain, as it is packed; its view is made by `gathered`."""

    def init(params: PyTree) -> tuple[PyTree, State]:
        with collect("gathered: scales are one for each output channel") as problems:
            for path, weight in paths.select(params, select).items():
                if bits == 8 and (wrong := problem(weight.shape, _format(select, path, weight))):
                    problems.append(f"{path}: {wrong}")
        return params, ()

    def pack(params: PyTree, state: State) -> PyTree:
        if bits == 32:
            return params
        found = paths.flatten(params, is_coded)
        weights = {p: unpack(x) for p, x in found.items() if paths.is_floating(x) and paths.matches(select, p, x, found)}
        coded = {
            p: quantize(w, _format(select, p, w)) if bits == 8 else w.astype(jnp.bfloat16).astype(w.dtype)
            for p, w in weights.items()
        }
        return paths.replace(params, coded, is_coded)

    return Transform(init, lambda params, state: unpack(pack(params, state)), hold, pack)


def _format(select: Select, path: Path, weight: Array) -> Uniform:
    return Uniform(8, channel_axis="out").at(axes_of(select, path, weight.shape))
