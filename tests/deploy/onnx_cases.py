"""Small functions of one or a few operations each, and inputs: what an exporter has to know."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


x4, image, row = normal(0, 2, 8, 8, 6), normal(1, 2, 12, 12, 4), normal(2, 5)
kernel, depthwise, grouped = normal(3, 3, 3, 4, 8), normal(4, 3, 3, 1, 8), normal(5, 3, 3, 2, 8)
table, wide = normal(6, 10, 4), normal(7, 4, 10)
ids = jnp.array([[1, 3], [9, 0]])


def conv(x, k, padding="SAME", strides=(1, 1), **kw):
    return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), **kw)


def scanned(x, reverse=False):
    return lax.scan(lambda c, a: (c * 0.5 + a, c.sum()), jnp.zeros((8, 6)), x.swapaxes(0, 1)[:, 0], reverse=reverse)


def long_scan(x):
    return lax.scan(lambda c, a: (jnp.tanh(c + a), c * a), jnp.zeros(6), jnp.tile(x[0, 0], (3, 1)))


CONVOLUTIONS = {
    "conv_same": (lambda x: conv(x, kernel), image),
    "conv_stride_same": (lambda x: conv(x, kernel, strides=(2, 2)), image),
    "conv_dilated": (lambda x: conv(x, kernel, "VALID", rhs_dilation=(2, 2)), image),
    "conv_depthwise": (lambda x: conv(x, depthwise, feature_group_count=4), image),
    "conv_grouped": (lambda x: conv(x, grouped, feature_group_count=2), image),
    "conv_transposed": (lambda x: conv(x, kernel, ((2, 2), (2, 2)), lhs_dilation=(2, 2)), image),
    "conv_transposed_grouped": (
        lambda x: conv(x, grouped, ((2, 1), (1, 2)), lhs_dilation=(2, 3), feature_group_count=2),
        image,
    ),
    "conv_transposed_strided": (lambda x: conv(x, kernel, ((2, 2), (3, 2)), (2, 1), lhs_dilation=(3, 2)), image),
    "conv_1d": (
        lambda x: lax.conv_general_dilated(x, normal(8, 3, 6, 5), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
        normal(9, 2, 9, 6),
    ),
    "conv_nchw": (lambda x: lax.conv(x, normal(10, 5, 8, 3, 3), (1, 1), "SAME"), x4),
    "conv_negative_padding": (lambda x: conv(x, kernel, ((-1, 0), (1, 0))), image),
    "conv_bias_read_twice": (lambda x: (lambda y: (jax.nn.relu(y + 0.5), y * 2))(conv(x, kernel)), image),
    "conv_of_two_inputs": (lambda x: conv(x, x[:1, :3, :3, :].transpose(1, 2, 3, 0)), image),
    "conv_vmapped": (lambda x: jax.vmap(lambda a: conv(a[None], kernel)[0])(x), image),
    "patches": (
        lambda x: lax.conv_general_dilated_patches(x, (2, 2), (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        x4,
    ),
    "max_pool": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"), image),
    "min_pool": (lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"), image),
    "avg_pool": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4, image),
    "sum_over_channels": (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 1, 1, 3), (1, 1, 1, 1), "SAME"), image),
    "pool_1d": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"), row),
}
ACTIVATIONS = {
    "softmax": (lambda x: jax.nn.softmax(x, -1), x4),
    "softmax_of_an_inner_axis": (lambda x: jax.nn.softmax(x, 1), x4),
    "log_softmax": (lambda x: jax.nn.log_softmax(x, 1), x4),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=-1), x4),
    "gelu": (jax.nn.gelu, x4),
    "gelu_exact": (lambda x: jax.nn.gelu(x, approximate=False), x4),
    "silu": (jax.nn.silu, x4),
    "elu": (jax.nn.elu, x4),
    "selu": (jax.nn.selu, x4),
    "softplus": (jax.nn.softplus, x4),
    "hard_swish": (jax.nn.hard_swish, x4),
    "relu6": (jax.nn.relu6, x4),
    "leaky_relu": (jax.nn.leaky_relu, x4),
    "glu": (jax.nn.glu, x4),
    "swish_beta": (lambda x: x * jax.nn.sigmoid(1.7 * x), x4),
    "mish": (jax.nn.mish, x4),
    "celu": (jax.nn.celu, x4),
    "relu": (jax.nn.relu, x4),
    "standardize": (lambda x: jax.nn.standardize(x), x4),
    "mean_var": (lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5), x4),
    "sdpa": (lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True), x4),
    "sdpa_of_two_axes": (lambda x: jax.nn.dot_product_attention(x, x + 1, x * 2), x4),
    "one_hot": (lambda i: jax.nn.one_hot(i, 5), jnp.array([1, 4])),
}
PRODUCTS = {
    "einsum": (lambda x: jnp.einsum("bhwc,bhvc->bwvh", x, x), x4),
    "einsum_of_a_weight": (lambda x: jnp.einsum("bhwc,hcd->bwd", x, normal(11, 8, 6, 3)), x4),
    "outer": (lambda x: jnp.outer(x, x), row),
    "tensordot": (lambda x: jnp.tensordot(x, normal(12, 8, 6, 7), 2), x4),
    "vector": (lambda x: x @ normal(13, 5), row),
    "vector_matrix": (lambda x: x @ normal(14, 5, 3) + 1, row),
    "matrix_vector": (lambda x: x @ normal(15, 6), x4),
    "dense_bias": (lambda x: x @ normal(16, 6, 4) + normal(17, 4), x4[0, 0]),
    "dense_bias_transposed": (lambda x: normal(18, 4, 6) @ x.T + 1, x4[0, 0]),
    "integers": (lambda i: i @ i, ids),
    "inner_of_many": (lambda x: jnp.einsum("bhwc,bhwc->b", x, x), x4),
    "linalg_norm": (lambda x: jnp.linalg.norm(x, axis=-1), x4),
    "halves": (lambda x: (x.astype(jnp.float16) @ normal(19, 6, 4).astype(jnp.float16)).astype(jnp.float32), x4 / 4),
    "bfloat16": (lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32), x4),
}
LOOKUPS = {
    "take": (lambda i: jnp.take(table, i, axis=0), ids),
    "take_columns": (lambda i: jnp.take(wide, i, axis=1), ids),
    "take_outside": (lambda i: jnp.take(table, i * 2, axis=0), ids),
    "take_clipped": (lambda i: jnp.take(table, i * 2, axis=0, mode="clip"), ids),
    "index": (lambda i: table[i], jnp.array([1, -1])),
    "index_of_both": (lambda x: x[:, 1, ::2, -1], x4),
    "index_outside": (lambda i: table[i], jnp.array([3, 30, -30])),
    "index_pair": (lambda x: x[jnp.array([0, 1]), jnp.array([3, 2])], x4),
    "index_pair_apart": (lambda i: x4[i[:, 0], :, i[:, 1]], jnp.array([[1, 3], [0, 7]])),
    "index_inner": (lambda i: x4[:, i], ids % 8),
    "take_along": (lambda x: jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1), x4),
    "take_along_first": (lambda x: jnp.take_along_axis(x, jnp.argsort(x, 0), 0), x4),
    "rows_under_vmap": (lambda i: jax.vmap(lambda a, j: a[j])(x4, i), jnp.array([3, 9])),
    "dynamic_slice": (lambda x: lax.dynamic_slice_in_dim(x, x.sum().astype(int) % 3, 4, 1), x4),
    "dynamic_index": (lambda i: lax.dynamic_slice(x4, (0, i[0], i[1], 0), (2, 3, 3, 2)), jnp.array([7, -1])),
    "windows_under_vmap": (lambda i: jax.vmap(lambda a: lax.dynamic_slice(table, (a, 0), (3, 4)))(i), jnp.array([0, 5, 9])),
    "dynamic_update": (lambda x: lax.dynamic_update_slice_in_dim(x, x[:, :2] * 0, 3, 1), x4),
    "dynamic_update_at": (
        lambda i: lax.dynamic_update_slice(x4, jnp.ones((2, 3, 3, 2)), (0, i[0], i[1], 0)),
        jnp.array([7, 1]),
    ),
    "at_set": (lambda x: x.at[:, 1].set(0.0), x4),
    "at_add": (lambda x: x.at[:, jnp.array([1, 1])].add(1.0), x4),
    "at_computed": (lambda i: jnp.zeros((10, 3)).at[i].add(1.0), ids),
    "at_outside": (lambda i: jnp.zeros(10).at[i * 2].set(1.0), ids),
    "at_max": (lambda x: x.at[:, :, 2].max(0.5), x4),
    "at_multiply": (lambda x: x.at[0].multiply(2.0), x4),
    "bincount": (lambda i: jnp.bincount(i, length=5), jnp.array([1, 1, 3])),
    "segment_sum": (lambda x: jax.ops.segment_sum(x[0, 0], jnp.array([0, 0, 1, 1, 2, 2, 3, 3]), 4), x4),
    "searchsorted": (lambda x: jnp.searchsorted(jnp.arange(5.0), x[0, 0, 0]), x4),
}
MOVES = {
    "pad": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), constant_values=1.0), x4),
    "pad_edge": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge"), x4),
    "pad_reflect": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="reflect"), x4),
    "pad_negative": (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (-1, 2, 0), (0, 0, 0), (0, 0, 0))), x4),
    "pad_interior": (lambda x: lax.pad(x, 0.5, ((0, 0, 0), (1, -1, 2), (0, 0, 1), (0, 0, 0))), x4),
    "pad_booleans": (lambda x: jnp.pad(x > 0, ((0, 0), (1, 1), (0, 0), (0, 0))), x4),
    "concatenate": (lambda x: jnp.concatenate([x, x * 2], 2), x4),
    "stack": (lambda x: jnp.stack([x, x]), x4),
    "split": (lambda x: jnp.split(x, 3, -1), x4),
    "flip": (lambda x: jnp.flip(x, 1), x4),
    "flip_both": (lambda x: x[::-1, :, ::-1], x4),
    "roll": (lambda x: jnp.roll(x, 2, 1), x4),
    "tile": (lambda x: jnp.tile(x, (1, 2, 1, 1)), x4),
    "repeat": (lambda x: jnp.repeat(x, 2, 1), x4),
    "resize_nearest": (lambda x: jax.image.resize(x, (2, 16, 16, 6), "nearest"), x4),
    "resize_linear": (lambda x: jax.image.resize(x, (2, 16, 16, 6), "bilinear"), x4),
    "where": (lambda x: jnp.where(x > 0, x, 0.1), x4),
    "where_of_booleans": (lambda x: jnp.where(x > 0, x > 1, x < -1), x4),
    "triu": (lambda x: jnp.triu(x[0, 0]), x4),
    "transposed_sum": (lambda x: x.transpose(0, 3, 1, 2).sum(2) + x.transpose(0, 3, 2, 1).max(3), x4),
    "broadcast": (lambda x: x[:, :, :1] * jnp.ones((8, 6)) + jnp.arange(6.0), x4),
    "broadcast_returned": (lambda x: jnp.broadcast_to(x[:, :1], x.shape), x4),
    "meshgrid": (lambda x: jnp.meshgrid(x, jnp.arange(3.0)), row),
    "arange": (lambda x: x + jnp.arange(8.0)[:, None], x4),
    "constants_returned": (lambda x: (jnp.ones((2, 3)), jnp.arange(4)), x4),
    "input_returned": (lambda x: (x, x[0]), x4),
}
ALONG = {
    "cumsum": (lambda x: jnp.cumsum(x, 1), x4),
    "cumsum_backwards": (lambda x: lax.cumsum(x, 1, reverse=True), x4),
    "cumprod": (lambda x: jnp.cumprod(x, 1), x4),
    "cumprod_backwards": (lambda x: lax.cumprod(x, 2, reverse=True), x4),
    "cummax": (lambda x: lax.cummax(x, 1), x4),
    "cummin": (lambda x: lax.cummin(x, 3), x4),
    "sort": (lambda x: jnp.sort(x, -1), x4),
    "sort_descending": (lambda x: jnp.sort(x, 1, descending=True), x4),
    "argsort": (lambda x: jnp.argsort(x, -1), x4),
    "argsort_of_equals": (lambda x: jnp.argsort(jnp.round(x), 1, stable=True), x4),
    "lexsort": (lambda x: jnp.lexsort((x[:, 0], jnp.round(x[:, 1]))), x4[0, 0]),
    "top_k": (lambda x: lax.top_k(x, 3), x4),
    "argmax": (lambda x: jnp.argmax(x, 1), x4),
    "argmin": (lambda x: jnp.argmin(x, -1), x4),
    "any": (lambda x: jnp.any(x > 1, -1), x4),
    "all": (lambda x: jnp.all(x > -1, -1), x4),
    "prod": (lambda x: x.prod(-1), x4),
    "std": (lambda x: x.std((1, 2)), x4),
    "median": (lambda x: jnp.median(x, -1), x4),
    "quantile": (lambda x: jnp.quantile(x, 0.3, axis=1), x4),
    "sum_of_booleans": (lambda x: (x > 0).sum(1), x4),
}
LOOPS = {
    "scan": (scanned, x4),
    "scan_backwards": (lambda x: scanned(x, True), x4),
    "long_scan": (long_scan, x4),
    "long_scan_backwards": (lambda x: lax.scan(lambda c, a: (c + a, c * a), x[0], jnp.tile(x, (5, 1)), reverse=True), x4[0, 0]),
    "fori": (lambda x: lax.fori_loop(0, 5, lambda i, c: c * 0.9 + i, x), x4),
    "while": (lambda x: lax.while_loop(lambda c: jnp.abs(c).max() > 0.5, lambda c: c * 0.7, x), x4),
    "while_under_vmap": (lambda x: jax.vmap(lambda a: lax.while_loop(lambda c: c[0] > 0.5, lambda c: c * 0.7, a))(x), x4[0, 0]),
    "cond": (lambda x: lax.cond(x.sum() > 0, lambda a: a * 2, lambda a: a - 1, x), x4),
    "switch": (
        lambda x: lax.switch((x.sum() > 0).astype(int) + 1, [lambda a: a, lambda a: a * 2, lambda a: a - 1], x),
        x4,
    ),
    "map": (lambda x: lax.map(lambda a: jnp.tanh(a).sum(0), x), x4),
    "associative_scan": (lambda x: lax.associative_scan(jnp.maximum, x, axis=1), x4),
    "remat": (lambda x: jax.checkpoint(jnp.sin)(x), x4),
}
ARITHMETIC = {
    "round": (lambda x: jnp.round(x * 3), x4),
    "floor_divide": (lambda x: x // 0.3, x4),
    "mod": (lambda x: jnp.mod(x, 0.3), x4),
    "int_divide": (lambda i: i // 3, jnp.array([7, -7, 5])),
    "int_mod": (lambda i: i % 3, jnp.array([7, -7, 5])),
    "divmod": (lambda i: jnp.divmod(i, -4), jnp.array([7, -7, 5])),
    "power": (lambda x: jnp.abs(x) ** 1.5, x4),
    "cube": (lambda x: x**3, x4),
    "inverse_square": (lambda x: (jnp.abs(x) + 0.1) ** -2, x4),
    "rsqrt": (lambda x: lax.rsqrt(jnp.abs(x) + 1), x4),
    "log1p": (lambda x: jnp.log1p(jnp.abs(x) * 10), x4),
    "log1p_of_little": (lambda x: jnp.log1p(x * 1e-6) * 1e6, x4),
    "expm1": (lambda x: jnp.expm1(x), x4),
    "expm1_of_little": (lambda x: jnp.expm1(x * 1e-6) * 1e6, x4),
    "exp2": (jnp.exp2, x4),
    "cbrt": (lambda x: jnp.cbrt(x), x4),
    "atan2": (lambda x: jnp.arctan2(x, x[::-1] - 0.3), x4),
    "erf": (jax.scipy.special.erf, x4),
    "erfc": (jax.scipy.special.erfc, x4),
    "isnan": (lambda x: jnp.isnan(jnp.log(x)), x4),
    "isfinite": (lambda x: jnp.isfinite(1 / jnp.maximum(x, 0)), x4),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), x4),
    "sign": (jnp.sign, x4),
    "hypot": (lambda x: jnp.hypot(x, 1.0), x4),
    "sinh_cosh": (lambda x: jnp.sinh(x) + jnp.cosh(x) + jnp.tan(x / 3), x4),
    "inverses": (lambda x: jnp.arcsin(jnp.tanh(x)) + jnp.arccos(jnp.tanh(x)) + jnp.arctan(x) + jnp.arcsinh(x), x4),
    "bits": (lambda i: ((i & 6) | 1) ^ ~i, jnp.array([7, -7, 5])),
    "logic": (lambda x: (x > 0) & (x < 1) | ~(x > -1) ^ (x > 2), x4),
    "bytes": (lambda i: (i.astype(jnp.uint8) * 3 + jnp.uint8(250), i.astype(jnp.int8) - jnp.int8(9)), jnp.array([7, 200, 5])),
    "bytes_to_floats": (lambda i: i / 255.0, jnp.array([7, 200, 5], jnp.uint8)),
    "compared_bytes": (lambda i: (i > 6) & (i != 200), jnp.array([7, 200, 5], jnp.uint8)),
    "nan_to_num": (lambda x: jnp.nan_to_num(jnp.log(x)), x4),
    "minimum_of_booleans": (lambda x: jnp.minimum(x > 0, x > 1), x4),
    "to_integers": (lambda x: (x * 5).astype(jnp.int32), x4),
    "stop_gradient": (lambda x: lax.stop_gradient(x) * 2, x4),
}
CASES = {**CONVOLUTIONS, **ACTIVATIONS, **PRODUCTS, **LOOKUPS, **MOVES, **ALONG, **LOOPS, **ARITHMETIC}
