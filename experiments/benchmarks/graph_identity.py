"""What an identity rewrite costs: step time and compile time of the rewritten model against the original.

    python -m experiments.benchmarks.graph_identity

Prints, for ResNet-20 (forward, and gradient) and a transformer, interleaved medians and their ratios, and whether XLA
compiled both to the same program: then a ratio other than 1 is the machine's noise.
"""

import re
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lepton_jax.core.timing import interleaved
from lepton_jax.graph import Interpreter, rewrite
from lepton_jax.models import ResNetCifar, Transformer


def program(compiled):
    """The instructions of a compiled function, without source lines, numbered in the order of their appearance."""
    text = re.sub(r", metadata=\{[^}]*\}", "", compiled.as_text())
    starts = [place for place in (text.find("\n%"), text.find("\nENTRY")) if place >= 0]
    names: dict[str, str] = {}
    return re.sub(r"%[\w.\-]+", lambda found: names.setdefault(found.group(), f"%{len(names)}"), text[min(starts) :])


def measure(name, apply, variables, inputs, rounds):
    """Print step and compile times of `apply` and of its identity rewrite, and their ratios."""
    functions = {"original": apply, "rewritten": rewrite(apply, Interpreter)}
    compiled: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    # Both orders, so that what the first compilation warms up favours neither.
    for label in ("original", "rewritten", "rewritten", "original"):
        jax.clear_caches()
        start = time.perf_counter()
        compiled[label] = jax.jit(functions[label]).lower(variables, inputs).compile()
        seconds.setdefault(label, []).append(time.perf_counter() - start)
    steps = interleaved({k: partial(f, variables, inputs) for k, f in compiled.items()}, rounds=rounds)
    compile_ratio = min(seconds["rewritten"]) / min(seconds["original"])
    print(
        f"{name}: step {1e3 * steps['original']:.3f} ms -> {1e3 * steps['rewritten']:.3f} ms, ratio "
        f"{steps['rewritten'] / steps['original']:.3f}; compile {min(seconds['original']):.2f} s -> "
        f"{min(seconds['rewritten']):.2f} s, ratio {compile_ratio:.2f}; "
        f"{'the same program' if program(compiled['original']) == program(compiled['rewritten']) else 'other programs'}"
    )


def main(rounds: int = 100) -> None:
    """Measure every model."""
    jax.config.update("jax_enable_compilation_cache", False)
    resnet, images = ResNetCifar(), jnp.ones((8, 32, 32, 3))
    transformer, tokens = Transformer(vocabulary=64), jnp.ones((4, 64), jnp.int32)
    weights = jax.jit(resnet.init)(jax.random.key(0), images)
    measure("ResNet-20, batch 8", resnet.apply, weights, images, rounds)

    def gradient(variables, x):
        rest = {key: value for key, value in variables.items() if key != "params"}

        def loss(params):
            return jnp.square(jnp.asarray(resnet.apply({"params": params, **rest}, x))).mean()

        return jax.grad(loss)(variables["params"])

    measure("ResNet-20 gradient, batch 8", gradient, weights, images, rounds)
    measure(
        "transformer, 4 x 64 tokens", transformer.apply, jax.jit(transformer.init)(jax.random.key(0), tokens), tokens, rounds
    )


if __name__ == "__main__":
    main()
