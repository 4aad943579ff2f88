"""What an accelerator makes of few bits: products against the roofline, compressed training steps, tokens a second; one table.

    python -m experiments.benchmarks.accelerator --out experiments/results/accelerator.md
    python -m experiments.benchmarks.accelerator --size tiny

Made to end within 8 minutes on one GPU. On CPU it runs in tiny sizes and says what it found there, which says nothing of an
accelerator. A dtype that the device or the compiler does not have is a line that says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.harness import arguments, origin, publish
from lepton_jax import fake_quant, identity, prune
from lepton_jax.core import paths
from lepton_jax.core.timing import interleaved
from lepton_jax.core.transform import Transform
from lepton_jax.formats import named_format
from lepton_jax.leaves.quantize import quantize
from lepton_jax.models import Transformer
from lepton_jax.models.generate import generate
from lepton_jax.training import create, make_train_step
from lepton_jax.tuning import MACHINES, Machine


class Size(NamedTuple):
    """How large things are: products, the decoder, its batch and length, tokens generated, rounds."""

    products: tuple[int, ...]
    depth: int
    width: int
    batch: int
    length: int
    tokens: int
    rounds: int


SIZES = {
    "full": Size((4096, 8192), 12, 1024, 8, 1024, 128, 20),
    "tiny": Size((64,), 1, 32, 2, 16, 4, 3),
}
Line = tuple[str, ...]
HEAD: Line = ("what", "size", "ms", "rate", "of the peak", "against the first")


def machine() -> Machine | None:
    """Return the figures of the device here, if they are known."""
    kind = jax.devices()[0].device_kind.lower()
    return next((figures for name, figures in MACHINES.items() if name in kind), None)


def products(size: Size, known: Machine | None) -> list[Line]:
    """Square products in several dtypes; int8 and fp8 have twice bfloat16's peak, int4 is unpacked to bfloat16."""
    lines: list[Line] = []
    for n in size.products:
        keys = jax.random.split(jax.random.key(0))
        a, b = (jax.random.normal(key, (n, n), jnp.bfloat16) for key in keys)
        small = quantize(b.astype(jnp.float32), named_format("accelerator", "int4_g128" if n >= 128 else "int4"))
        cast = {"bfloat16": (jnp.bfloat16, jnp.float32, 1), "int8": (jnp.int8, jnp.int32, 2)}
        cast["float8_e4m3fn"] = (jnp.float8_e4m3fn, jnp.float32, 2)
        calls: dict[str, tuple[Callable[[], Any], int]] = {}
        for name, (dtype, out, times) in cast.items():
            left, right = (
                ((8 * x).astype(jnp.int8) if dtype == jnp.int8 else x.astype(dtype)) for x in (a, b)
            )  # of a few steps, so that nothing overflows
            product = jax.jit(partial(jnp.matmul, preferred_element_type=out))
            calls[name] = partial(product, left, right), times
        unpacked = jax.jit(lambda x, w: x @ w.unpack().astype(jnp.bfloat16))
        calls["int4 weights"] = partial(unpacked, a, small), 1
        taken, first = timed({name: call for name, (call, _) in calls.items()}, size.rounds), None
        for name, (_, times) in calls.items():
            seconds = taken[name]
            if isinstance(seconds, str):
                lines.append((f"product, {name}", f"{n}", "", seconds, "", ""))
                continue
            rate, first = 2 * n**3 / seconds, first or seconds
            share = "" if known is None else f"{100 * rate / (times * known.flops):.0f} %"
            figures = f"{1e3 * seconds:.3f}", f"{rate / 1e12:.3f} T/s", share, f"{seconds / first:.2f}"
            lines.append((f"product, {name}", f"{n}", *figures))
    return lines


def decoder(size: Size) -> tuple[Transformer, Any, Any]:
    """Return a decoder in bfloat16, its parameters, and tokens."""
    heads = max(2, size.width // 64)
    shape: dict[str, Any] = {"depth": size.depth, "width": size.width, "heads": heads, "kv_heads": heads, "mlp": 4 * size.width}
    kinds: dict[str, Any] = {"position": "rotary", "norm": "rms", "activation": "silu", "gated": True, "biases": ()}
    model = Transformer(1024 if size.width < 256 else 32000, **shape, **kinds, scan=True, dtype=jnp.bfloat16)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 1000, (size.batch, size.length)), jnp.int32)
    return model, jax.jit(model.init)(jax.random.key(0), tokens)["params"], tokens


def steps(size: Size) -> list[Line]:
    """Training steps of the decoder: plain, pruned, and trained through rounding."""
    model, params, tokens = decoder(size)

    def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
        logits: Any = model.apply({"params": params}, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1].astype(jnp.float32), batch[:, 1:])
        return losses.mean(), (model_state, {})

    ways: dict[str, Transform] = {"plain": identity(), "pruned 90 %": prune(0.9), "QAT 8 bits": fake_quant(8)}
    calls = {}
    for name, transform in ways.items():
        tx = optax.adamw(1e-4)
        step = make_train_step(loss_fn, tx, transform)
        # The step is given its state away, so it begins with one of its own.
        held = [create(jax.tree.map(jnp.copy, params), {}, tx, transform, jax.random.key(0))]

        def call(step: Any = step, held: list[Any] = held) -> Any:
            held[0], metrics = step(held[0], tokens)
            return metrics

        calls[name] = call
    return compared("step", f"{size.depth} x {size.width}", calls, size.rounds, tokens.size, "tokens/s")


def decoding(size: Size) -> list[Line]:
    """Tokens a second of the decoder, its weights in bfloat16 and in 4 bits."""
    model, params, tokens = decoder(size)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    fmt = named_format("accelerator", "int4")
    kernels = {path: quantize(leaf, fmt) for path, leaf in paths.flatten(params).items() if path.endswith("kernel")}
    prompt = tokens[:, : min(8, size.length)]
    given = {"bfloat16": half, "int4": paths.replace(half, kernels)}
    run = jax.jit(lambda params, prompt: generate(model.apply, {"params": params}, prompt, size.tokens))
    calls = {f"{name} weights": partial(run, tree, prompt) for name, tree in given.items()}
    return compared(
        "decoding", f"{size.depth} x {size.width}", calls, max(2, size.rounds // 4), size.batch * size.tokens, "tokens/s"
    )


def compared(what: str, about: str, calls: Mapping[str, Callable[[], Any]], rounds: int, count: int, unit: str) -> list[Line]:
    """Return a line for each call, with its time over the first one's."""
    taken, first = timed(calls, rounds), None
    lines: list[Line] = []
    for name, seconds in taken.items():
        if isinstance(seconds, str):
            lines.append((f"{what}, {name}", about, "", seconds, "", ""))
            continue
        first = first or seconds
        lines.append(
            (f"{what}, {name}", about, f"{1e3 * seconds:.3f}", f"{count / seconds:,.0f} {unit}", "", f"{seconds / first:.2f}")
        )
    return lines


def timed(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float | str]:
    """Return the median seconds of each call, taken in turns, or why it does not run here."""
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            jax.block_until_ready(call())
        except Exception as error:  # whatever the compiler says of a dtype that it does not have
            failed[name] = f"does not run here: {type(error).__name__}"
    taken = interleaved({name: call for name, call in calls.items() if name not in failed}, rounds=rounds)
    return {name: failed.get(name) or taken[name] for name in calls}


def measure(size: Size) -> list[Line]:
    """Return all lines."""
    return [HEAD, *products(size, machine()), *steps(size), *decoding(size)]


def main() -> None:
    """Measure, print, publish."""
    given = arguments(__doc__, out=True, size=(("auto", *SIZES), "full: of a GPU; tiny: a trial; auto: by the device"))
    platform, began = jax.devices()[0].platform, time.perf_counter()
    chosen = given.size if given.size != "auto" else "tiny" if platform == "cpu" else "full"
    head, *lines = measure(SIZES[chosen])
    known = machine()
    peak = (
        f"Peak: {known.flops / 1e12:g} T/s in bfloat16, twice that in int8 and fp8 ({known.source})."
        if known
        else "No peak is known."
    )
    where = "This is a processor: nothing here says anything of an accelerator." if platform == "cpu" else ""
    publish(
        [
            "# Few bits on this device",
            "",
            f"Made by {origin(f'accelerator --size {chosen}')} {jax.devices()[0].device_kind}. {peak} {where}".rstrip(),
            "",
            *(f"| {' | '.join(line)} |" for line in (head, ("---",) * len(head), *lines)),
            "",
            f"{time.perf_counter() - began:.0f} s in all.",
        ],
        given.out,
    )


if __name__ == "__main__":
    main()
