"""What training a decoder on many devices needs, on paper: bytes a device, what goes over the wire, the least time of a step.

Nothing is executed: shapes come from `jax.eval_shape`, shares from a placement over devices that need not be there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lepton_jax.core import paths
from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_option, check_whole
from lepton_jax.core.transform import Transform, identity
from lepton_jax.core.typing import PyTree
from lepton_jax.graph.cost import cost
from lepton_jax.lowrank import lora, qlora
from lepton_jax.models import Transformer
from lepton_jax.models.block import Block
from lepton_jax.models.transformer import _OF_BLOCKS
from lepton_jax.pruning import prune
from lepton_jax.quantization import Uniform, fake_quant
from lepton_jax.training import Placement, create, fsdp
from lepton_jax.training.step import step_function
from lepton_jax.tuning.machines import Machine

Technique = Literal["dense", "prune", "quantize", "lora", "qlora"]
_LLAMA: dict[str, Any] = {"position": "rotary", "norm": "rms", "activation": "silu", "gated": True, "biases": (), "scan": True}
DECODERS: Mapping[str, Transformer] = {
    "1b": Transformer(128256, depth=16, width=2048, heads=32, kv_heads=8, mlp=8192, tied=True, **_LLAMA),
    "7b": Transformer(32000, depth=32, width=4096, heads=32, kv_heads=8, mlp=14336, **_LLAMA),
    "70b": Transformer(32000, depth=80, width=8192, heads=64, kv_heads=8, mlp=28672, **_LLAMA),
}
"""Of the sizes of Llama 3.2 1B, Mistral 7B and Llama 2 70B; blocks are scanned."""
_BLOCKS, _KERNELS, _TABLE = "blocks/", "blocks/*/kernel", "Embed_0/embedding"
_RANK = 16


@checked
@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What one step needs. Bytes are of one device, counts and bytes sent of one step.

    Attributes:
      parameters: that are trained, in float32.
      moments: of Adam.
      state: of the transform: masks, fixed and quantized weights.
      gradients: of the trained parameters.
      view: the parameters as the model sees them, where a transform makes others of them.
      gathered: weights that are whole for a while: of one block forward and of the one before it, or the largest table.
      activations: every block's input, all of one block, and the logits: with each block computed again in the backward pass.
      kept: all activations, if nothing is computed again.
      counts: how many of each collective; "all-gather" and "all-reduce".
      sent: bytes that each device sends, in a ring.
      compute: seconds of products at the machine's peak.
      memory: seconds of reading and writing weights and state.
      wire: seconds of sending.

    Example:
      >>> plan = MemoryPlan(
      ...     parameters=4,
      ...     moments=8,
      ...     state=0,
      ...     gradients=4,
      ...     view=0,
      ...     gathered=2,
      ...     activations=6,
      ...     kept=9,
      ...     counts={"all-gather": 2},
      ...     sent=3.0,
      ...     compute=0.5,
      ...     memory=0.25,
      ...     wire=0.25,
      ... )
      >>> plan.total, plan.seconds
      (24, (0.5, 1.0))
    """

    parameters: int
    moments: int
    state: int
    gradients: int
    view: int
    gathered: int
    activations: int
    kept: int
    counts: Mapping[str, int]
    sent: float
    compute: float
    memory: float
    wire: float

    @property
    def total(self) -> int:
        """Bytes of one device, with each block computed again."""
        parts = (self.parameters, self.moments, self.state, self.gradients, self.view, self.gathered, self.activations)
        return sum(parts)

    @property
    def seconds(self) -> tuple[float, float]:
        """The least time of a step: if products, memory and wire overlap wholly, and if not at all."""
        parts = self.compute, self.memory, self.wire
        return max(parts), sum(parts)


@checked
def plan_memory(
    model: Transformer,
    machine: Machine,
    *,
    technique: Technique = "dense",
    devices: int = 8,
    batch: int = 1,
    length: int = 2048,
) -> MemoryPlan:
    """Return what a step of full FSDP with Adam needs, by formula; see `compiled_step` for the compiler's word.

    A spread weight is gathered in float32 forward and backward, and the gradient of the view is added up once: as the
    compiled program does where rows stay where they are. Attention keeps its probabilities, as `Transformer` does.

    Args:
      model: scanned.
      machine: gives the peaks.
      technique: what is trained; corrections of LoRA have rank 16, quantized weights 4 bits, pruned ones 90 % zeros.
      devices: how many.
      batch: sequences a device.
      length: of a sequence.

    Raises:
      ValueError: for numbers less than 1, an unknown technique, or a model that is not scanned.

    Example:
      >>> from lepton_jax.tuning.machines import MACHINES
      >>> tiny = DECODERS["1b"].clone(vocabulary=64, depth=2, width=32, heads=4, kv_heads=2, mlp=64)
      >>> plan = plan_memory(tiny, MACHINES["h100"], devices=4, length=16)
      >>> plan.parameters, plan.counts["all-gather"]
      (20736, 38)

    Source: bytes: Rajbhandari et al. 2020, ZeRO, section 3; roofline: Williams, Waterman, Patterson 2009.
    """
    check_option("technique", technique, Technique)
    for name, value in (("devices", devices), ("batch", batch), ("length", length)):
        check_whole(f"plan_memory: {name}", value, 1)
    if not model.scan:
        raise ValueError("plan_memory: the model must be scanned; give scan=True.")
    placement = fsdp(AbstractMesh((devices,), ("data",)))
    params, state = _shapes(model, technique)
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    macs = cost(lambda v, x: model.apply({"params": v}, x), params, tokens).macs
    shares = {name: _bytes(getattr(state, name), placement, params) for name in ("params", "opt_state", "tstate")}
    gathers, sums = wire_of(model, params, placement)
    sent = (devices - 1) / devices * (sum(4 * size * n for size, n in gathers) + 2 * sum(4 * size * n for size, n in sums))
    leaves = paths.flatten(params)
    block = sum(4 * math.prod(leaf.shape[1:]) for path, leaf in leaves.items() if path.startswith(_BLOCKS))
    tables = [4 * leaf.size for path, leaf in leaves.items() if not path.startswith(_BLOCKS)]
    inner, stream = _inner(model, batch, length), 2 * batch * length * model.width
    logits = 2 * 4 * batch * length * model.vocabulary
    whole = 4 * sum(leaf.size for leaf in leaves.values())
    moved = 3 * whole + 2 * sum(shares.values())  # weights: forward, again, backward
    return MemoryPlan(
        parameters=shares["params"],
        moments=shares["opt_state"],
        state=shares["tstate"],
        gradients=shares["params"],
        view=0 if technique == "dense" else _bytes(params, placement, params),
        gathered=max(2 * block, *tables) if devices > 1 else 0,
        activations=model.depth * stream + inner + logits,
        kept=model.depth * inner + logits,
        counts={"all-gather": sum(n for _, n in gathers), "all-reduce": sum(n for _, n in sums)},
        sent=sent,
        compute=2 * macs * 4 / machine.flops,  # forward, again, and twice as much backward
        memory=moved / machine.bandwidth,
        wire=sent / machine.link(devices) if devices > 1 else 0.0,
    )


def wire_of(model: Transformer, params: PyTree, placement: Placement) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return what is gathered and what is added up in a step: elements, and how often.

    A block's weight is gathered forward and backward, another once, a tied table for both of its uses; what is whole is not.
    Every gradient is added up once, in each block of its own, and once for each use of a tied table.
    """
    gathers, sums = [], []
    leaves = paths.flatten(params)
    for path, spec in placement.weights(params).items():
        inside, shape = path.startswith(_BLOCKS), leaves[path].shape
        size = math.prod(shape[1:] if inside else shape)
        times = model.depth if inside else 2 if model.tied and path == _TABLE else 1
        if any(spec):
            gathers.append((size, times * (2 if inside else 1)))
        sums.append((size, times))
    return gathers, sums


@checked
def compiled_step(
    model: Transformer, mesh: Mesh, *, technique: Technique = "dense", batch: int = 1, length: int = 2048
) -> jax.stages.Compiled:
    """Compile the step of a plan for devices that are there, such as several of the host; nothing is executed.

    What each layer returns is held to the devices of its rows. Else the compiler may gather activations of the whole batch
    rather than weights.

    Args:
      model, technique, batch, length: as for `plan_memory`.
      mesh: of devices, with an axis "data".

    Example:
      >>> mesh = jax.make_mesh((1,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
      >>> tiny = DECODERS["1b"].clone(vocabulary=64, depth=2, width=32, heads=4, kv_heads=2, mlp=64)
      >>> from lepton_jax.tuning.machines import MACHINES
      >>> step = compiled_step(tiny, mesh, length=16)
      >>> plan = plan_memory(tiny, MACHINES["h100"], devices=1, length=16)
      >>> step.memory_analysis().argument_size_in_bytes - plan.parameters - plan.moments < 200  # tokens, key, numbers
      True
    """
    check_option("technique", technique, Technique)
    placement, rows = fsdp(mesh), NamedSharding(mesh, PartitionSpec("data"))
    params, state = _shapes(model, technique)
    tokens: Any = jax.ShapeDtypeStruct((batch * mesh.size, length), jnp.int32)

    def stay(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        out = call(*args, **kwargs)
        if (
            context.method_name != "__call__"
            or not isinstance(out, jax.Array)
            or not out.ndim
            or out.shape[0] != tokens.shape[0]
        ):
            return out
        return jax.lax.with_sharding_constraint(out, rows)

    def loss_fn(params: PyTree, model_state: PyTree, batch: Any, key: Any) -> Any:
        with nn.intercept_methods(stay):
            logits: Any = model.apply({"params": params}, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch[:, 1:]).mean(), (model_state, {})

    lies, whole = placement.shardings(state, params), NamedSharding(mesh, PartitionSpec())
    step = step_function(loss_fn, optax.adam(1e-4), _transform(technique))
    jitted = jax.jit(step, in_shardings=(lies, rows), out_shardings=(lies, whole), donate_argnums=0)
    return jitted.lower(state, tokens).compile()


def _transform(technique: Technique) -> Transform:
    key = jax.random.key(0)
    made: dict[str, Callable[[], Transform]] = {
        "dense": identity,
        "prune": lambda: prune(0.9),
        "quantize": lambda: fake_quant(Uniform(bits=4)),
        "lora": lambda: lora(_RANK, key, select=_KERNELS, stacked=1),
        "qlora": lambda: qlora(_RANK, key, select=_KERNELS, stacked=1),
    }
    return made[technique]()


def _shapes(model: Transformer, technique: Technique) -> tuple[PyTree, Any]:
    """Return the shapes of the parameters before the transform, and of the training state."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    begin = lambda params, key: create(params, {}, optax.adam(1e-4), _transform(technique), key)  # noqa: E731
    return params, jax.eval_shape(begin, params, jax.random.key(0))


def _bytes(tree: PyTree, placement: Placement, params: PyTree) -> int:
    """Count the bytes of one device's share."""
    lies = jax.tree.leaves(placement.shardings(tree, params))
    return sum(_size(leaf, lying.shard_shape(leaf.shape)) for leaf, lying in zip(jax.tree.leaves(tree), lies, strict=True))


def _size(leaf: Any, shape: tuple[int, ...]) -> int:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return 4 * jax.eval_shape(jax.random.key_data, leaf).size
    return math.prod(shape) * np.dtype(leaf.dtype).itemsize


def _inner(model: Transformer, batch: int, length: int) -> int:
    """Count the bytes that the backward pass of one block keeps of the forward one, its weights left out; in bfloat16."""
    block = Block(**{name: getattr(model, name) for name in _OF_BLOCKS if name != "dtype"}, dtype=jnp.bfloat16, rotary=True)
    x = jax.ShapeDtypeStruct((batch, length, model.width), jnp.bfloat16)
    params = jax.eval_shape(block.init, jax.random.key(0), x)
    weights = {shape for leaf in jax.tree.leaves(params) for shape in (leaf.shape, (*reversed(leaf.shape),))}
    kept = jax.eval_shape(lambda p, x: jax.vjp(block.apply, p, x)[1], params, x)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept) if leaf.shape not in weights)


TECHNIQUES: tuple[Technique, ...] = get_args(Technique)
"""Rows of a table."""
