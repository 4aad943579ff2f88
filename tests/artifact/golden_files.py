"""Write the files that every later version must read, with what they hold: `tests/artifact/golden`.

    python tests/artifact/golden_files.py FOLDER

For a new version of the format: write them to a folder of their own, and leave the old ones as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.hostile import lepton_files
from lepton_jax.artifact import Artifact, container, load, program, save
from lepton_jax.formats import Uniform
from lepton_jax.leaves.adapted import Adapted
from lepton_jax.leaves.block_sparse import BlockSparse
from lepton_jax.leaves.low_rank import LowRank
from lepton_jax.leaves.quantize import quantize
from lepton_jax.leaves.sparse import Sparse


def arrays_of(artifact: Artifact) -> dict[str, np.ndarray]:
    """All arrays of a file, packed and dense, by path, as bytes with dtype and shape in their names."""
    out: dict[str, np.ndarray] = {}
    for kind, tree in (("packed", artifact.packed), ("dense", artifact.variables)):
        for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            array = np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
            name = f"{kind} {jax.tree_util.keystr(keys)} {array.dtype.name} {','.join(map(str, array.shape))}"
            out[name] = np.frombuffer(array.tobytes(), np.uint8)
    return out


def network(variables: dict[str, Any], x: jax.Array) -> jax.Array:
    """Three layers, the first on normalised inputs."""
    x = (x - variables["batch_stats"]["mean"][None, :]) * jax.lax.rsqrt(variables["batch_stats"]["var"][None, :] + 1e-5)
    x = jnp.tanh(x @ variables["params"]["low_rank"] + variables["params"]["bias"].astype(jnp.float32)[None, :])
    x = jnp.tanh(x @ variables["params"]["blocks"])
    return x @ variables["params"]["quantized"].astype(jnp.float32)


def network_variables() -> dict[str, Any]:
    """Its variables: quantized and sparse factors, blocks, integers, a cast bias, batch statistics."""
    rng = np.random.default_rng(5)
    factors = LowRank(
        quantize(jnp.asarray(rng.normal(size=(10, 3)), jnp.float32), Uniform(bits=4)),
        Sparse.from_dense(jnp.asarray(np.where(rng.random((3, 8)) < 0.5, rng.normal(size=(3, 8)), 0), jnp.float32)),
        (10, 8),
    )
    blocks = np.kron(np.eye(4), np.ones((2, 3))) * rng.normal(size=(8, 12))
    return {
        "params": {
            "low_rank": factors,
            "bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16),
            "blocks": BlockSparse.from_dense(jnp.asarray(blocks, jnp.float32), (2, 3)),
            "quantized": quantize(jnp.asarray(rng.normal(size=(12, 4)), jnp.float32), Uniform(bits=5, channel_axis=-1)),
        },
        "batch_stats": {"mean": jnp.asarray(rng.normal(size=10), jnp.float32), "var": jnp.ones(10)},
    }


def adapted(rng: np.random.Generator) -> Adapted:
    """A quantized weight and its correction."""
    base, u, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 4), (6, 1), (1, 4)))
    return Adapted(quantize(base, Uniform(bits=4)), LowRank(u, v, (6, 4)))


def add_one(variables: Any, x: jax.Array) -> jax.Array:
    """A program that uses no weights."""
    del variables
    return x + 1


def write(folder: Path) -> None:
    """Write all files, and beside each one what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    x = jnp.asarray(np.random.default_rng(6).normal(size=(3, 10)), jnp.float32)
    rng = np.random.default_rng(7)
    leaves = {"params": lepton_files.small_leaves(rng), "list": [jnp.float32(1), (jnp.zeros(2),)], "adapted": adapted(rng)}
    save(folder / "leaves.lepton", add_one, leaves, x, recipe={"bits": 3}, metrics={"error": 0.25})
    save(folder / "network.lepton", network, network_variables(), x, native=True)
    for number, good in enumerate(lepton_files.coder_files(1)):
        path = folder / f"coders{number}.lepton"
        path.write_bytes(good.file)
        code = program.export_program(add_one, load(path).packed, (x,)).exported.serialize()
        path.write_bytes(container.build(good.manifest, code, good.tensors))
    for path in sorted(folder.glob("*.lepton")):
        artifact = load(path)
        coders = sorted({name for _, _, _, used in artifact._parts.tensors for name in used})
        outputs = {"x": np.asarray(x), "y": np.asarray(artifact(x)), "coders": np.array(coders)}
        arrays: dict[str, Any] = {**arrays_of(artifact), **outputs}
        np.savez_compressed(path.with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
