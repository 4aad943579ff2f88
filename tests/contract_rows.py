"""The arguments of every method, for the tests of the contract: a new method is a row here."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import Transform, cast, chain, fake_quant, freeze, identity, low_rank, prune
from lepton_jax.core import paths, schedules
from lepton_jax.distillation import by_part
from lepton_jax.leaves import (
    CP,
    Adapted,
    BlockSparse,
    CodebookArray,
    LowRank,
    Packed,
    QArray,
    Ready,
    Separable,
    Sparse,
    TensorTrain,
    TensorTrainMatrix,
    Tucker,
    pack_bits,
    quantize,
    ready,
)
from lepton_jax.lowrank import (
    ByPath,
    CpAls,
    SpatialSvd,
    Svd,
    TrainMatrixSvd,
    TrainSvd,
    Tucker2,
    WeightedSvd,
    dora,
    lora,
    qlora,
    reduce_rank,
)
from lepton_jax.precision import Policy
from lepton_jax.pruning import (
    Blocks,
    Channels,
    Filters,
    Heads,
    NofM,
    Unstructured,
    allocation,
    bit_masks,
)
from lepton_jax.pruning.bit_masks import to_bits
from lepton_jax.pruning.criteria import (
    BatchNormScale,
    Fisher,
    Given,
    Grasp,
    Inverted,
    Lamp,
    LayerNormalized,
    Magnitude,
    Movement,
    Random,
    Saliency,
    Snip,
    SynFlow,
    Wanda,
)
from lepton_jax.pruning.sparse_training import ac_dc, dynamic_surgery, fixed_masks, rigl, set_, soft_threshold
from lepton_jax.quantization import (
    MX,
    Binary,
    BitSchedule,
    Codebook,
    DoReFa,
    Dynamic,
    Entropy,
    Float8,
    LearnedStep,
    MinMax,
    MovingAverage,
    Mse,
    NormalFloat4,
    Pact,
    Percentile,
    Static,
    Ternary,
    TwiceMean,
    Uniform,
    delayed,
    dorefa,
    lsq,
    mxfp4,
    scheduled_quant,
    stochastic_quant,
)
from lepton_jax.quantization.bit_schedule import DelayedState
from lepton_jax.quantization.codebook import train_codebook
from lepton_jax.training import data_mesh, fsdp, gathered


def weights(seed: int = 0, dtype: jnp.dtype = jnp.float32) -> dict:
    draw = np.random.default_rng(seed).normal
    tree = {"a": {"kernel": draw(size=(6, 4)), "bias": draw(size=4)}, "b": {"kernel": draw(size=(4, 3))}}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


BATCH = jnp.asarray(np.random.default_rng(9).normal(size=(5, 6)), jnp.float32)


def loss(params: dict, batch: jax.Array) -> jax.Array:
    hidden = jnp.tanh(batch.astype(params["a"]["kernel"].dtype) @ params["a"]["kernel"] + params["a"]["bias"][None])
    return jnp.mean((hidden @ params["b"]["kernel"]).astype(jnp.float32) ** 2)


UNIFORM_FORMATS = [
    Uniform(bits=bits, symmetric=symmetric, channel_axis=axis)
    for bits, symmetric, axis in [(2, True, None), (3, False, -1), (5, True, 0), (8, False, None)]
] + [Uniform(4, group_size=3, group_axis=0, scale_dtype="float16"), Uniform(3, narrow_range=True, channel_axis=-1)]
FORMATS = {
    Binary: [Binary()],
    Codebook: [Codebook(bits=1), Codebook(bits=3)],
    Float8: [Float8("float8_e5m2")],
    MX: [mxfp4()],
    NormalFloat4: [NormalFloat4(group_size=2)],
    Ternary: [Ternary(channel_axis=-1)],
    Uniform: UNIFORM_FORMATS,
}
CRITERIA = {
    BatchNormScale: [BatchNormScale(scales={"a/kernel": "a/bias"})],
    Fisher: [Fisher()],
    Given: [Given(by_path={"a/kernel": np.arange(24.0).reshape(6, 4), "b/kernel": np.eye(4, 3, dtype=bool)})],
    Grasp: [Grasp(loss=lambda params: loss(params, BATCH))],
    Inverted: [Inverted(criterion=Saliency())],
    Lamp: [Lamp()],
    LayerNormalized: [LayerNormalized(criterion=Movement())],
    Magnitude: [Magnitude()],
    Movement: [Movement()],
    Random: [Random(key=jax.random.key(5))],
    Saliency: [Saliency(decay=0.5)],
    Snip: [Snip(loss=lambda params: loss(params, BATCH))],
    SynFlow: [SynFlow(apply=lambda params, x: loss(params, x), inputs=jax.ShapeDtypeStruct((1, 6), jnp.float32))],
    Wanda: [Wanda(apply=lambda params, x: loss(params, x), batches=[jnp.arange(30.0).reshape(5, 6)])],
}
# Not all leaves have what it looks at.
SELECTED = {BatchNormScale: "a/kernel"}
STRUCTURES = {
    Blocks: [Blocks(shape=(4, 2))],  # which divides neither leaf
    Channels: [Channels(axis=0)],
    Filters: [Filters()],
    Heads: [Heads(axis=0, width=2)],
    NofM: [NofM(n=1, m=2), NofM(n=1, m=4, axis=-1, pad=True)],
    Unstructured: [Unstructured()],
}
CALIBRATIONS = {
    Entropy: [Entropy(bins=64, candidates=20)],
    MinMax: [MinMax()],
    MovingAverage: [MovingAverage(decay=0.5)],
    Mse: [Mse(candidates=20)],
    Percentile: [Percentile(q=90)],
    TwiceMean: [TwiceMean()],
}
QUANTIZERS = {
    DoReFa: [DoReFa(3)],
    Dynamic: [
        Dynamic(Uniform(4, False)),
        *(Dynamic(Uniform(8, narrow_range=narrow), Percentile(q=90), axes=(1,)) for narrow in (False, True)),
    ],
    LearnedStep: [LearnedStep(Uniform(3)), LearnedStep(Uniform(4, False))],
    Pact: [Pact(2), Pact(4, signed=True)],
    Static: [Static(Uniform(8)), Static(Uniform(5, False, channel_axis=1), MovingAverage())],
}
ALLOCATIONS = {
    "Explicit": allocation.Explicit(sparsities={"a/*": 0.7, "b/*": 0.4}),
    "erk": allocation.erk,
    "uniform": allocation.uniform,
}
SCHEDULES = {
    schedules.constant: [schedules.constant(0.6)],
    schedules.cosine: [schedules.cosine(0.6, begin=1, end=6)],
    schedules.one_shot: [schedules.one_shot(0.6, begin=3)],
    schedules.periodic: [schedules.periodic(0.6, begin=1, end=8, compressed=2, dense=1)],
    schedules.polynomial: [schedules.polynomial(0.7, begin=1, end=7), schedules.polynomial(0.5, begin=0, end=4, power=1)],
}
FACTORIZATIONS = {
    ByPath: [ByPath(methods={"w": Svd()}, missing="method")],
    CpAls: [CpAls(iterations=3)],
    SpatialSvd: [SpatialSvd(), SpatialSvd(stacked=1)],
    Svd: [Svd(), Svd(rows=1), Svd(stacked=1)],
    TrainMatrixSvd: [TrainMatrixSvd(cores=2)],
    TrainSvd: [TrainSvd()],
    Tucker2: [Tucker2(iterations=1), Tucker2(stacked=1)],
    WeightedSvd: [WeightedSvd(root=jnp.arange(1.0, 7.0), rows=1), WeightedSvd(root=jnp.eye(4), columns=True)],
}


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng([13, *shape]).normal(size=shape), jnp.float32)


def _codebook(*shape: int) -> CodebookArray:
    codes = jnp.asarray(np.random.default_rng([14, *shape]).integers(0, 4, shape), jnp.uint8)
    return CodebookArray(pack_bits(codes, 2), jnp.array([-1.5, 0.5, 2.0]), 2, shape, "float32")


# A leaf of two axes is multiplied and looked up, one of three scanned over, one of four is a kernel.
LEAVES: dict[type, list[Packed]] = {
    QArray: [
        quantize(draw(6, 4), Uniform(4, channel_axis=-1)),
        quantize(draw(3, 6, 6), Uniform(3, False, group_size=4)),
        quantize(draw(3, 2, 4, 5), mxfp4()),
    ],
    Ready: [ready({"w": quantize(draw(6, 4), Uniform(4, False, channel_axis=-1))})["w"]],
    CodebookArray: [_codebook(6, 4), _codebook(3, 6, 6), _codebook(3, 2, 4, 5)],
    Sparse: [Sparse.from_dense(jnp.maximum(draw(*shape), 0)) for shape in ((6, 4), (3, 6, 6), (3, 2, 4, 5))],
    LowRank: [
        LowRank(draw(6, 2), draw(2, 4), (6, 4)),
        LowRank(quantize(draw(3, 6, 2), Uniform(8)), Sparse.from_dense(draw(3, 2, 6)), (3, 6, 6)),
        LowRank(quantize(draw(24, 3), Uniform(8)), draw(3, 5), (3, 2, 4, 5)),
    ],
    Adapted: [
        Adapted(quantize(draw(6, 4), Uniform(4)), LowRank(draw(6, 2), draw(2, 4), (6, 4))),
        Adapted(Sparse.from_dense(draw(3, 6, 6)), LowRank(draw(3, 6, 1), draw(3, 1, 6), (3, 6, 6))),
        Adapted(draw(3, 2, 4, 5), LowRank(draw(24, 2), draw(2, 5), (3, 2, 4, 5))),
    ],
    BlockSparse: [
        BlockSparse.from_dense(jnp.where(draw(6, 1) > 0, draw(6, 4), 0), (2, 2)),
        BlockSparse.from_dense(draw(3, 6, 6), (2, 4), stacked=1),
        BlockSparse.from_dense(draw(3, 2, 4, 5), (2, 2)),
    ],
    Separable: [Separable(draw(3, 4, 2), draw(2, 2, 5), (3, 2, 4, 5))],
    Tucker: [
        Tucker(draw(6, 2), draw(2, 3), draw(3, 4), (6, 4)),
        Tucker(draw(3, 6, 2), draw(3, 2, 3), draw(3, 3, 6), (3, 6, 6)),
        Tucker(draw(4, 2), quantize(draw(3, 2, 2, 3), Uniform(8)), draw(3, 5), (3, 2, 4, 5)),
    ],
    CP: [CP((draw(6, 2), draw(4, 2)), (6, 4)), CP((draw(3, 2), draw(2, 2), draw(4, 2), draw(5, 2)), (3, 2, 4, 5))],
    TensorTrain: [
        TensorTrain((draw(6, 2), quantize(draw(2, 4), Uniform(8))), (6, 4)),
        TensorTrain((draw(4, 2), draw(2, 3, 2), draw(2, 2, 3), draw(3, 5)), (3, 2, 4, 5)),
    ],
    TensorTrainMatrix: [TensorTrainMatrix((draw(2, 2, 3), draw(3, 3, 2)), (6, 4))],
}
GRADIENTS = ("masked", "straight_through")


def _prunings() -> dict[str, Transform]:
    rows = {
        "global": prune(0.6, scope="global", score_scale={"a/*": 2.0}),
        "straight_through": prune(schedules.polynomial(0.7, begin=1, end=7), gradient="straight_through", interval=2),
    }
    # What is a default is not run twice.
    for c in itertools.chain(*CRITERIA.values()):
        if c != Magnitude():
            rows[repr(c)] = prune(0.6, criterion=c, select=SELECTED.get(type(c), paths.matrices))
    for s in itertools.chain(*STRUCTURES.values()):
        if s != Unstructured():
            rows[repr(s)] = prune(1 - s.n / s.m if isinstance(s, NofM) else 0.6, structure=s)
    rows |= {name: prune(0.6, allocation=function) for name, function in ALLOCATIONS.items() if name != "uniform"}
    rows |= {repr(s): prune(s) for s in itertools.chain(*SCHEDULES.values())}
    return rows


def _rigl() -> Transform:
    return rigl(0.6, jax.random.key(0), end=8, interval=2)


_PLACED = fsdp(data_mesh(jax.devices()[:1]))
TRANSFORMS: dict[str, dict[str, Transform]] = {
    "identity": {"": identity()},
    "prune": _prunings(),
    "fake_quant": {repr(f): fake_quant(f) for f in itertools.chain(*FORMATS.values())}
    | {repr(c): fake_quant(bits=4, calibration=c) for c in itertools.chain(*CALIBRATIONS.values()) if c != MinMax()},
    "train_codebook": {"1 bit": train_codebook(Codebook(bits=1), "b/*")},
    "low_rank": {
        "2": low_rank(2),
        "by path": low_rank({"b/kernel": 3}),
        "matrix train": low_rank(2, method=TrainMatrixSvd(cores=2)),
        "weighted": low_rank(2, method=WeightedSvd(root=jnp.arange(1.0, 7.0)), select="a/kernel"),
    },
    "lora": {"": lora(2, jax.random.key(1), scale=0.5), "biases too": lora(1, jax.random.key(1), select="b/*", train="a/*")},
    "qlora": {"int4": qlora(2, jax.random.key(1)), "loftq": qlora(1, jax.random.key(1), rounds=2, scale=2.0)},
    "dora": {"": dora(2, jax.random.key(1))},
    "reduce_rank": {"half": reduce_rank(3, schedules.polynomial(0.5, begin=1, end=7))},
    "cast": {
        "bfloat16": cast(jnp.bfloat16),
        "float16": cast("float16", select="*/kernel"),
        "policy": Policy(compute_dtype="float16").view(),
    },
    "chain": {"none": chain()},
    "freeze": {"identity": freeze(identity(), ())},
    "by_part": {"prune": by_part({"a": prune(0.6)}), "both": by_part({"a": fake_quant(bits=4), "b": low_rank(2)})},
    "fixed_masks": {g: fixed_masks({"a/kernel": jnp.arange(24).reshape(6, 4) % 3 > 0}, gradient=g) for g in GRADIENTS},
    "set_": {"": set_(0.6, jax.random.key(0), end=8, interval=2)},
    "rigl": {"": _rigl(), "affine3": chain(_rigl(), fake_quant(bits=3, symmetric=False, channel_axis=-1))},
    "dynamic_surgery": {"": dynamic_surgery(0.0, jax.random.key(0), end=8, gamma=0.1)},
    "ac_dc": {"": ac_dc(0.6, begin=1, end=7, compressed=2, dense=1)},
    "lsq": {
        "2": lsq(2),
        "affine": lsq(Uniform(3, symmetric=False, channel_axis=-1)),
        "groups": lsq(Uniform(4, group_size=4)),
        "prune": chain(prune(schedules.polynomial(0.7, begin=1, end=7)), lsq(3)),
        "factors>cast": chain(low_rank(2), lsq(4), cast(jnp.bfloat16)),
    },
    "dorefa": {"unit": dorefa(3), "kept": dorefa(4, scale="kept")},
    "stochastic_quant": {"4": stochastic_quant(4, jax.random.key(3))},
    "scheduled_quant": {"8-4-3": scheduled_quant(BitSchedule(begin=(2, 4, 6), bits=(8, 4, 3)))},
    "delayed": {"int4": delayed(fake_quant(bits=4), 3), "lsq": delayed(lsq(4), 3)},
    "gathered": {
        "8": gathered(prune(0.6), _PLACED),
        "16": gathered(low_rank(2), _PLACED, bits=16),
        "32": gathered(fake_quant(4), _PLACED, bits=32),
    },
    "bit_masks": {"rigl": bit_masks(_rigl()), "set": chain(bit_masks(set_(0.6, jax.random.key(0), end=8)), fake_quant(4))},
    "soft_threshold": {"leaf": soft_threshold(), "channels": soft_threshold(initial=-1.0, g=jnp.exp, channel_axis=-1)},
}


class Wrapped(NamedTuple):
    """A transform, and a state and parameters of it."""

    transform: Transform
    state: Any
    params: Any


WRAPPERS: dict[str, Callable[[Wrapped], Wrapped]] = {
    "bit_masks": lambda t: Wrapped(bit_masks(t.transform), to_bits(t.state), t.params),
    "by_part": lambda t: Wrapped(by_part({"net": t.transform}), {"net": t.state}, {"net": t.params, "rest": jnp.ones((2, 2))}),
    "chain": lambda t: Wrapped(chain(t.transform), (t.state,), t.params),
    "delayed": lambda t: Wrapped(delayed(t.transform, 0), DelayedState(t.state, jnp.bool_(True)), t.params),
    "freeze": lambda t: Wrapped(freeze(t.transform, t.state), t.state, t.params),
    "gathered": lambda t: Wrapped(gathered(t.transform, _PLACED, bits=32), (t.state, ()), t.params),
}
SINGLES = {f"{name}-{row}".strip("-"): t for name, rows in TRANSFORMS.items() for row, t in rows.items()}

KINDS = {
    "prune": prune(0.6),
    "regrow": prune(0.6, gradient="straight_through", scope="global"),
    "int4": fake_quant(bits=4),
    "affine3": fake_quant(bits=3, symmetric=False, channel_axis=-1),
    "codebook": fake_quant(Codebook(bits=2)),
    "low_rank": low_rank(2),
    "cast": cast(jnp.bfloat16),
    "lsq": lsq(4),
}
# A leaf whose place was taken cannot be re-parametrised again.
REFUSED = {("codebook", "low_rank"), ("codebook", "lsq"), ("lsq", "low_rank"), ("lsq", "codebook")}
PAIRS = {f"{a}>{b}": chain(KINDS[a], KINDS[b]) for a, b in itertools.permutations(KINDS, 2) if (a, b) not in REFUSED}
TRIPLES = {
    ">".join(names): chain(*(KINDS[name] for name in names))
    for names in [
        ("prune", "codebook", "cast"),
        ("prune", "int4", "cast"),
        ("low_rank", "prune", "int4"),
        ("low_rank", "prune", "codebook"),
        ("cast", "affine3", "regrow"),
        ("int4", "cast", "affine3"),
    ]
}
ALL = SINGLES | PAIRS | TRIPLES
