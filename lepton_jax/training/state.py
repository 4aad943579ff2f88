"""The state of a training run: everything that a checkpoint has to hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lepton_jax.core.arguments import checked
from lepton_jax.core.devices import for_mesh
from lepton_jax.core.transform import Transform
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.precision.all_reduce import AllReduce
from lepton_jax.precision.loss_scale import LossScale
from lepton_jax.training.arrays import put
from lepton_jax.training.placement import Placement
from lepton_jax.training.reduce.base import lies


class TrainState(NamedTuple):
    """All that a training step reads and writes.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: the float32 masters.
      model_state: the model's other collections, e.g. ``{"batch_stats": ...}``; ``{}`` if it has none.
      opt_state: of the optax optimiser.
      tstate: of the transform.
      key: a typed random key; step k draws from ``fold_in(key, k)``.
      loss_scale: of the loss scaling, a `lepton_jax.precision.LossScaleState`; ``()`` without.
      reduction: of a compressed sum of gradients, a `lepton_jax.training.reduce.ReduceState`; ``()`` without.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: Any
    tstate: Any
    key: Array
    loss_scale: Any = ()
    reduction: Any = ()


@checked
def create(
    params: PyTree,
    model_state: PyTree,
    tx: optax.GradientTransformation,
    transform: Transform,
    key: Array,
    *,
    loss_scale: LossScale | None = None,
    placement: Placement | None = None,
    reduce: AllReduce | None = None,
) -> TrainState:
    """Begin a run at step 0.

    The state holds copies with strong dtypes: its buffers are its own, so that it can be donated, and the types do not
    change with the first step, so that the step is traced once.

    Args:
      params: the model's parameters; the transform may re-parametrise them.
      model_state: other collections, or ``{}``.
      tx: the optimiser; initialised for the transform's masters.
      transform: the view to train under; `lepton_jax.identity` for plain training.
      key: a typed key, from `jax.random.key`.
      loss_scale: as for `make_train_step`.
      placement: how parameters lie on a mesh of devices; masks, factors, step sizes and moments follow their parameter.

      reduce: as for `parallel_step`; a compressed one keeps an error on each device of the placement's mesh.

    Raises:
      TypeError: if `key` is a raw array of `jax.random.PRNGKey`.
      ValueError: if the placement does not fit the parameters, or a compressed sum has no placement that has its axis.

    Example:
      >>> from lepton_jax import identity
      >>> state = create({"w": jnp.ones(2)}, {}, optax.sgd(0.1), identity(), jax.random.key(0))
      >>> int(state.step), state.params["w"].tolist()
      (0, [1.0, 1.0])
    """
    if not jax.dtypes.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"create: key must be a typed key, as jax.random.key(seed) makes it; got {type(key).__name__} {key}.")

    devices = 1 if reduce is None or not reduce.remembers else _devices(reduce, placement)

    def begin(params: PyTree, model_state: PyTree, key: Array) -> TrainState:
        params, tstate = transform.init(params)
        scaling = () if loss_scale is None else loss_scale.init()
        reduction = () if reduce is None else reduce.init(params, devices)
        return jax.tree.map(
            _own, TrainState(jnp.int32(0), params, model_state, tx.init(params), tstate, key, scaling, reduction)
        )

    # Compiled whole: an operation at a time, a transform's init would compile dozens of small programs.
    if placement is None:
        return jax.jit(begin)(params, model_state, key)
    shapes = jax.eval_shape(begin, params, model_state, key)
    shardings = placement.shardings(shapes, params)
    if reduce is not None:
        shardings = shardings._replace(reduction=lies(shapes.reduction, reduce, placement.devices))
    placed = placement.place(params), placement.place(model_state, params), put(key, shardings.key)
    return jax.jit(for_mesh(begin, placement.mesh), out_shardings=shardings)(*placed)


def _devices(reduce: AllReduce, placement: Placement | None) -> int:
    there = {} if placement is None else placement.devices.shape
    if reduce.axis not in there:
        raise ValueError(
            f"create: {type(reduce).__name__} keeps an error on each device; give placement=, e.g. replicated(data_mesh()), "
            f"with a mesh that has the axis {reduce.axis!r}; got {', '.join(map(str, there)) or 'no placement'}."
        )
    return int(there[reduce.axis])


def _own(leaf: Any) -> Array:
    """Copy a leaf into a buffer of its own and make its dtype strong."""
    leaf = jnp.asarray(leaf) if not hasattr(leaf, "dtype") else leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.copy(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return jax.lax.convert_element_type(jnp.copy(leaf), leaf.dtype)
