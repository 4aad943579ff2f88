"""Adding gradients up over devices, in a dtype of choice."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.typing import Array, PyTree
from lepton_jax.precision.policy import floating_dtype


@checked
@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """The mean over an axis of devices: ``sum_i (g_i / n)``, cast to `dtype` before it is sent, and back after.

    bfloat16 halves what is sent; its range is float32's, so that nothing overflows, and each g_i is rounded to 8 bits. In
    float16 scaled gradients may overflow: then the step is skipped as any other that does.

    Args:
      dtype: of the gradients' sums: ``"float32"`` or ``"bfloat16"``; any floating one.
      axis: of the devices' mesh.

    Raises:
      TypeError: if the dtype is not floating.

    Example:
      >>> jax.vmap(AllReduce(dtype="bfloat16").gradients, axis_name="data")({"w": jnp.array([1.0, 3.0])})["w"]
      Array([2., 2.], dtype=float32)
    """

    dtype: Any = "float32"
    axis: str = "data"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", floating_dtype("AllReduce: dtype", self.dtype))

    def gradients(self, grads: PyTree) -> PyTree:
        """Return the mean of the devices' gradients, summed in `dtype`."""
        count = jax.lax.axis_size(self.axis)

        def mean(leaf: Array) -> Array:
            share = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) / count
            return jax.lax.psum(share.astype(self.dtype), self.axis).astype(leaf.dtype)

        return jax.tree.map(lambda leaf: mean(leaf) if paths.is_floating(leaf) else leaf, grads)

    @property
    def remembers(self) -> bool:
        """Whether the sum has a state; this one has none."""
        return False

    def init(self, params: PyTree, devices: int) -> Any:
        """Return the first state, for `lepton_jax.training.create`."""
        return ()

    def check(self, state: Any) -> None:
        """Raise unless the state is this sum's."""
        if state != ():
            raise ValueError("AllReduce: the state holds the errors of another sum; make it with create(...) without reduce=.")

    def specs(self) -> Any:
        """How the state is spread over the devices: a prefix of it in partition specs."""
        return PartitionSpec()

    def reduce(self, grads: PyTree, state: Any) -> tuple[PyTree, Any]:
        """Return what `gradients` does, and the state."""
        return self.gradients(grads), state

    def values(self, tree: PyTree) -> PyTree:
        """Return the mean of losses, metrics and running statistics, in their own dtype; integers and keys are left."""
        return jax.tree.map(lambda leaf: jax.lax.pmean(leaf, self.axis) if paths.is_floating(leaf) else leaf, tree)

    def own(self, key: Array) -> Array:
        """Return this device's key, so that devices drop out differently."""
        return jax.random.fold_in(key, jax.lax.axis_index(self.axis))
