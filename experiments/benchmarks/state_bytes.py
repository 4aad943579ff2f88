"""Count the bytes a parameter that a training state holds: dense, pruned, LoRA, QLoRA; plain, moments in 8 bits, masks as bits.

    python -m experiments.benchmarks.state_bytes [--width 1024] [--layers 2] [--out FILE.md]

The weights of a decoder's layers (attention 4 d^2, gated feed-forward 12 d^2) and Adam. Nothing is computed: the state's shapes
are those of `create` (`jax.eval_shape`). Bytes are over all of the model's parameters, the frozen ones too; gradients, which
live within a step, are float32 for each trained number and are told apart. A second table has what the forward pass of a
scanned decoder of that width keeps for the backward one (`residual_bytes`): as it is, cast, and with `remat` and its budgets.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks.harness import arguments, origin, publish
from experiments.common.tables import Lines, markdown_table
from lepton_jax import Transform, identity, prune
from lepton_jax.lowrank import lora, qlora
from lepton_jax.models import Transformer
from lepton_jax.precision import Policy, autocast, remat, residual_bytes
from lepton_jax.pruning import bit_masks
from lepton_jax.training import create, eight_bit


def weights(width: int, layers: int) -> dict[str, Any]:
    """Shapes of a decoder's layers."""
    sizes = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    sizes |= {"gate": (width, 4 * width), "up": (width, 4 * width), "down": (4 * width, width)}
    one = {name: {"kernel": jax.ShapeDtypeStruct(size, jnp.float32)} for name, size in sizes.items()}
    return {f"layer_{place}": one for place in range(layers)}


def ways() -> dict[str, tuple[Transform, bool]]:
    """What is trained, and whether moments are in 8 bits."""
    key = jax.random.key(0)
    return {
        "dense": (identity(), False),
        "dense, moments in 8 bits": (identity(), True),
        "pruned 90 %": (prune(0.9), False),
        "pruned 90 %, masks as bits": (bit_masks(prune(0.9)), False),
        "pruned 90 %, masks as bits, moments in 8 bits": (bit_masks(prune(0.9)), True),
        "LoRA, rank 16": (lora(16, key), False),
        "LoRA, rank 16, moments in 8 bits": (lora(16, key), True),
        "QLoRA, rank 16, int4 in groups of 64": (qlora(16, key, format="int4_g64"), False),
        "QLoRA, rank 16, int4 in groups of 64, moments in 8 bits": (qlora(16, key, format="int4_g64"), True),
    }


def kept(width: int, layers: int) -> Lines:
    """Return what is kept of a decoder's forward pass, bytes a token and layer."""
    batch, length = 4, 256
    model = Transformer(256, depth=layers, width=width, heads=width // 64, mlp=4 * width, scan=True)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

    def loss(params: Any, tokens: Any) -> Any:
        logits: Any = model.apply({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    half = autocast(loss, Policy(compute_dtype="bfloat16"))
    everything = residual_bytes(remat(half), params, tokens)
    rows = {
        "float32": loss,
        "float32, `remat`": remat(loss),
        "`autocast` to bfloat16": half,
        "`autocast`, `remat`": remat(half),
    }
    lines: Lines = [(f"kept for the backward pass, {batch} x {length} tokens", "bytes a token and layer")]
    counted = {name: residual_bytes(one, params, tokens) for name, one in rows.items()}
    for share in (0.75, 0.5):
        few = remat(half, budget=round(share * everything))
        counted[f"`autocast`, `remat` with {share:.0%} of that as budget"] = residual_bytes(few, params, tokens)
    lines += [(name, f"{count / (batch * length * layers):,.0f}") for name, count in counted.items()]
    return lines


def size(tree: Any) -> int:
    """Bytes of all arrays, keys aside."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def main() -> None:
    """Print the table, and write it if asked."""
    options = arguments(__doc__, out=True, width=(1024, "of the model"), layers=(2, "of the model"))
    params = weights(options.width, options.layers)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    cells: Lines = [("bytes a parameter", "trained", "transform's state", "moments", "together", "gradients in a step")]
    for name, (transform, narrow) in ways().items():
        tx = eight_bit(optax.adam(1e-3)) if narrow else optax.adam(1e-3)

        def begin(params: Any, transform: Transform = transform, tx: Any = tx) -> Any:
            return create(params, {}, tx, transform, jax.random.key(0))

        state = jax.eval_shape(begin, params)
        parts = [size(state.params), size(state.tstate), size(state.opt_state)]
        cells.append((name, *(f"{part / count:.3f}" for part in (*parts, sum(parts), size(state.params)))))
    said = f"state_bytes --width {options.width} --layers {options.layers}"
    lines = ["# Bytes a parameter of a training state", "", origin(said), ""]
    lines += [f"{count:,} parameters; Adam.", "", *markdown_table(cells), ""]
    lines += markdown_table(kept(options.width, options.layers))
    publish(lines, options.out)


if __name__ == "__main__":
    main()
