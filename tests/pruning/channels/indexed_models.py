"""Small models that write by index, sum over devices, transform along an axis or multiply in ragged groups."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from channel_models import fill, images
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

P = PartitionSpec


def plain(apply, shapes, *inputs):
    """(apply, variables, inputs, keywords) of a function of a dict of shapes."""
    return apply, fill({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}), inputs, {}


def normal(*shape, seed=2):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def cache():
    """One step of a decoder: keys and values are written into a cache, some twice, and read."""
    shapes = {"q": (4, 6), "k": (4, 6), "v": (4, 6), "start": (3, 6), "gain": (1, 6), "out": (6, 4)}

    def apply(p, x, place):
        keys = jnp.zeros((2, 5, 6)).at[:, :3].set(p["start"]).at[:, place].set(x @ p["k"])
        values = jnp.zeros((2, 5, 6)).at[:, place].add(x @ p["v"]).at[:, 1].multiply(p["gain"]).at[:, 4].add(-p["gain"])
        values = values.at[:, 2].max(0.0).at[:, 0].min(jnp.zeros((2, 6)))
        scores = jnp.einsum("bd,btd->bt", x @ p["q"], keys)
        return jnp.einsum("bt,btd->bd", jax.nn.softmax(scores), values) @ p["out"]

    return plain(apply, shapes, normal(2, 4), jnp.int32(3))


def graph_net():
    """Messages along edges, summed and averaged at their ends."""
    ends = jnp.asarray(np.random.default_rng(3).integers(0, 5, (2, 9)), jnp.int32)
    shapes = {"embed": (3, 8), "bias": (1, 8), "message": (8, 6), "update": (8, 6), "out": (6, 2)}

    def apply(p, x, ends):
        h = jax.nn.relu(x @ p["embed"] + p["bias"])
        total = jax.ops.segment_sum(h[ends[0]] @ p["message"], ends[1], num_segments=5)
        degree = jax.ops.segment_sum(jnp.ones(9), ends[1], num_segments=5)
        return jax.nn.relu(total / (1 + degree)[:, None] + h @ p["update"]) @ p["out"]

    return plain(apply, shapes, normal(5, 3), ends)


class SyncNorm(nn.Module):
    @nn.compact
    def __call__(self, x, axis):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, axis_name=axis)(x))
        return nn.Conv(2, (1, 1))(x)


def _sync_variables():
    return fill(jax.eval_shape(lambda x: SyncNorm().init(jax.random.key(0), x, None), images()))


def sync_norm_vmap():
    """Batch norm over a named axis that `vmap` makes; the updated statistics are those of all."""

    def apply(variables, x):
        run = partial(SyncNorm().apply, variables, axis="batch", mutable=["batch_stats"])
        y, state = jax.vmap(run, axis_name="batch")(x)
        return y, jax.tree.map(lambda leaf: leaf[0], state)

    return apply, _sync_variables(), (images(batch=4)[:, None],), {}


def data_parallel(check):
    """Batch norm over the devices of a mesh, in a `shard_map`."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def apply(variables, x):
        @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P("data"), P()), check_vma=check)
        def run(variables, x):
            return SyncNorm().apply(variables, x, axis="data", mutable=["batch_stats"])

        return run(variables, x)

    return apply, _sync_variables(), (images(batch=4),), {}


def tensor_parallel(gather):
    """Two layers split over devices, each by its hidden channels: summed over devices, or gathered, or scattered."""
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    shapes = {"in": (4, 6), "up": (6, 16), "bias": (1, 16), "down": (16, 6), "out": (6, 4)}
    specs = {"in": P(), "up": P(None, "model"), "bias": P(None, "model"), "down": P("model") if not gather else P(), "out": P()}

    def apply(p, x):
        @partial(jax.shard_map, mesh=mesh, in_specs=(specs, P("data")), out_specs=P("data"), check_vma=not gather)
        def run(p, x):
            h = jax.nn.relu(x @ p["in"])
            hidden = jax.nn.relu(h @ p["up"] + p["bias"])
            if gather:
                whole = jax.lax.all_gather(hidden, "model", axis=1, tiled=True)
                parts = jax.lax.psum_scatter(whole @ p["down"], "model", scatter_dimension=1, tiled=True)
                h = h + jax.lax.all_gather(parts, "model", axis=1, tiled=True) / 2
            else:
                h = h + jax.lax.psum(hidden @ p["down"], "model")
            return h @ p["out"]

        return run(p, x)

    return plain(apply, shapes, normal(4, 4))


def spectrum():
    """Mixing over time by a Fourier transform, forth and back, with channels last."""
    shapes = {"in": (3, 6), "gain": (1, 1, 6), "mix": (6, 6), "out": (6, 2)}

    def apply(p, x):
        h = jax.nn.relu(x @ p["in"])
        h = jnp.fft.irfft(jnp.fft.rfft(h, axis=1) * p["gain"], n=8, axis=1)
        return jax.nn.relu(jnp.real(jnp.fft.fft(h, axis=1)) @ p["mix"]) @ p["out"]

    return plain(apply, shapes, normal(2, 8, 3))


def experts():
    """A mixture of experts whose tokens are sorted by expert: ragged dots."""
    shapes = {"in": (4, 6), "up": (3, 6, 8), "down": (3, 8, 6), "out": (6, 2)}

    def apply(p, x, sizes):
        h = jax.nn.relu(x @ p["in"])
        hidden = jax.nn.relu(jax.lax.ragged_dot(h, p["up"], sizes))
        return (h + jax.lax.ragged_dot(hidden, p["down"], sizes)) @ p["out"]

    return plain(apply, shapes, normal(7, 4), jnp.asarray([2, 4, 1], jnp.int32))


INDEXED = {
    "cache": cache,
    "graph_net": graph_net,
    "sync_norm_vmap": sync_norm_vmap,
    "data_parallel": lambda: data_parallel(True),
    "data_parallel_unchecked": lambda: data_parallel(False),
    "tensor_parallel": lambda: tensor_parallel(False),
    "tensor_parallel_gathered": lambda: tensor_parallel(True),
    "spectrum": spectrum,
    "experts": experts,
}
