"""Weights that are gathered in few bits: under FSDP the codes go over the wire, not the floats."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.packed import is_packed, unpack, unpack_coded
from lepton_jax.core.straight_through import straight_through
from lepton_jax.core.transform import State, Transform, chain, hold, identity, named
from lepton_jax.core.typing import Array, Path, PyTree, Select
from lepton_jax.core.weight_axes import axes_of
from lepton_jax.formats import Uniform
from lepton_jax.formats.base import rounded
from lepton_jax.leaves.rounding import calibrated, codes_of, values_of
from lepton_jax.quantization.fake_quant import fake_quant
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
    roundings = {8: fake_quant(8, select=select), 16: _to_bfloat16(select), 32: identity()}
    both = chain(transform, roundings[bits])

    def view_leaves(params: PyTree, states: State) -> PyTree:
        shown = unpack_coded(transform.view_leaves(params, states[0]))
        lies = paths.flatten(placement.shardings(shown, jax.eval_shape(transform.view, params, states[0])))
        found = paths.flatten(shown)
        wanted = [path for path, leaf in found.items() if paths.is_floating(leaf) and paths.matches(select, path, leaf, found)]
        return paths.replace(shown, {path: arrives(path, found[path], lies[path]) for path in wanted})

    def arrives(path: Path, weight: Array, lies: NamedSharding) -> Array:
        held = jax.lax.stop_gradient(weight)
        if bits == 8:
            fmt = Uniform(8, channel_axis="out").at(axes_of(select, path, weight.shape))
            seen = _through_codes(held, fmt, lies, placement.batch_axis)
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


def _to_bfloat16(select: Select) -> Transform:
    """Round to bfloat16, and show the leaf's own dtype."""

    def init(params: PyTree) -> tuple[PyTree, State]:
        paths.select(params, select)
        return params, ()

    def view(params: PyTree, state: State) -> PyTree:
        leaves = {path: leaf.astype(jnp.bfloat16).astype(leaf.dtype) for path, leaf in paths.select(params, select).items()}
        return paths.replace(params, leaves)

    return Transform(init, view, hold)
