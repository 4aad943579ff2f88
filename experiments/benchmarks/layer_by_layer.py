"""CPU time of quantizing a network layer by layer: ResNet-32 with 4-bit weights, calibrated on images of CIFAR-10's size.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python -m experiments.benchmarks.layer_by_layer

Columns: ``first``: seconds of CPU time of the first call, with all compilation; ``again``: of a second one; ``error``: the mean
over layers of the relative output error that the report gives; ``codes``: a checksum of all codes, alike where all are. The
images are smooth noise, the weights He's at the start with ranges of their own: the time depends on neither.
"""

import hashlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.harness import arguments, origin, publish
from lepton_jax.core import paths
from lepton_jax.core.packed import is_packed
from lepton_jax.core.typing import PyTree
from lepton_jax.models import ResNetCifar
from lepton_jax.quantization import AdaRound, Gptq, Nearest, Uniform, quantize_layers


def network(depth: int, count: int) -> tuple[Any, PyTree, list[jax.Array]]:
    """Return a network, its variables, and calibration images in batches of 100."""
    rng = np.random.default_rng(0)
    coarse = jnp.asarray(rng.normal(size=(count, 8, 8, 3)), jnp.float32)
    images = jax.image.resize(coarse, (count, 32, 32, 3), "bilinear")
    model = ResNetCifar(depth=depth)
    return model.apply, jax.jit(model.init)(jax.random.key(0), images[:1]), list(images.reshape(-1, min(count, 100), 32, 32, 3))


def measured(run: Callable[[], tuple[PyTree, Any]]) -> tuple[float, float, float, str]:
    """Return CPU seconds of two calls, the mean error of the layers, and a checksum of the codes."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        quantized, reports = jax.block_until_ready(run())
        seconds.append(time.process_time() - start)
    leaves = [leaf for leaf in paths.flatten(quantized, is_packed).values() if is_packed(leaf)]
    digest = hashlib.sha256(b"".join(np.asarray(leaf.qvalue).tobytes() for leaf in leaves)).hexdigest()
    return *seconds, float(np.mean([report.error for report in reports.values()])), digest[:8]  # type: ignore[return-value]


def main() -> None:
    """Print a table of the methods."""
    options = {"depth": (32, "of the network"), "images": (500, "for calibration")}
    args = arguments(__doc__, out=True, **options, methods=(["GPTQ", "AdaRound", "nearest"], "which"))
    apply, variables, batches = network(args.depth, args.images)
    methods = {
        "GPTQ": (Gptq(), {}),
        "AdaRound": (AdaRound(), {}),
        "nearest": (Nearest(), {"sequential": False}),
    }
    lines = [origin("layer_by_layer"), "", "```", f"{'method':10}{'first':>10}{'again':>10}{'error':>10}{'codes':>10}"]
    for name in args.methods:
        method, settings = methods[name]

        def run(method: Any = method, settings: Any = settings) -> tuple[PyTree, Any]:
            fmt = Uniform(4, channel_axis=-1)
            chosen = {"select": "*/kernel", "progress": False, **settings}
            return quantize_layers(apply, variables, batches, fmt, method, **chosen)

        first, again, error, digest = measured(run)
        lines.append(f"{name:10}{first:10.1f}{again:10.1f}{error:10.5f}{digest:>10}")
    publish([*lines, "```"], args.out)


if __name__ == "__main__":
    main()
