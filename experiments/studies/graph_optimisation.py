"""What optimising a net's graph gains on a CPU, for each kind of operation and for the net whole, beside the papers' claims.

Before is plain jit of the net as it is written. After, its batch norms are folded into its convolutions, and what XLA is
slow at is done otherwise (`fast_lowering`). "convolution", "pool" and "dense" are all operations of that kind of the net's
forward pass, in one program, at their shapes, on random numbers; of a net with batch norms, each convolution is followed
before by its norm's scale and shift, and after by a shift. "whole" is the forward pass, whose memory is what XLA says of
arguments, results and what is beside them; "step" the derivatives of a loss, in training mode, where nothing can be folded.
Times are of one core, by `deploy.gate`: processor time, in turn, the first twice (A/A); where these are more than 5 %
apart, a row is marked and says nothing.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import linen as nn

from experiments.benchmarks.lowering_nets import Audio, ConvNeXt, MobileNet
from experiments.common import study
from experiments.common.columns import figure, plain, setting, tabulate
from experiments.common.results import Result
from experiments.common.study import Cell, Parts
from experiments.studies.single_point import layers
from experiments.studies.single_point.report import AGAIN, CLAIMS, faster, trusted
from lepton_jax import graph
from lepton_jax.graph import _compat
from lepton_jax.models import CNN, LeNet5, ResNet, ResNetCifar

PRIMITIVES = {
    "convolution": ("conv_general_dilated",),
    "pool": ("reduce_window_max", "reduce_window_sum"),
    "dense": ("dot_general",),
}
"""The operations of each kind."""
WHOLE, STEP = "whole", "step"
LESS_TIME, LESS_MEMORY = 0.2, 0.3
"""The papers' claims for a net: how much less it takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(study.Row):
    """A network."""

    make: Callable[[], nn.Module]
    """It."""
    shape: tuple[int, ...]
    """Of one example."""
    kinds: tuple[str, ...] = ("convolution", "pool", "dense")
    """Of its operations."""


_NO_POOL = ("convolution", "dense")
ROWS = (
    Row(name="papers_cnn", make=CNN, shape=(28, 28, 1)),
    Row(name="resnet18_64px", make=ResNet, shape=(64, 64, 3)),
    Row(name="mobilenet_64px", make=MobileNet, shape=(64, 64, 3), kinds=_NO_POOL),
    Row(name="convnext_64px", make=ConvNeXt, shape=(64, 64, 3), kinds=_NO_POOL),
    Row(name="audio_4096", make=Audio, shape=(4096, 1), kinds=_NO_POOL),
    Row(name="resnet20", make=lambda: ResNetCifar(depth=20), shape=(32, 32, 3), kinds=_NO_POOL),
    Row(name="lenet5", make=LeNet5, shape=(28, 28, 1), kinds=_NO_POOL),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptimisation(study.Study):
    """All networks, each kind of operation by itself."""

    rows: Annotated[tuple[Row, ...], tyro.conf.Suppress] = ROWS
    """The networks."""
    images: int = 8
    """Examples of a call."""
    rounds: int = 7
    """Of a timing."""
    tries: int = 1
    """Of a timing whose A/A is off."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.at_least(3, "rounds")
        yield from self.at_least(1, "images", "tries")

    @property
    def cells(self) -> list[Cell]:
        """Each kind that a network has, the network whole, its step."""
        return [
            Cell(row=row, name=row.name, settings={"what": what}, label=f"{row.name}-{what}")
            for row in self.chosen
            for what in (*row.kinds, WHOLE, STEP)
        ]

    def made(self, row: Row, seed: int) -> tuple[nn.Module, Any]:
        """A network, and examples."""
        x = np.random.default_rng(seed).standard_normal((self.images, *row.shape), np.float32)
        return row.make(), jnp.asarray(x)

    def runner(self, seeds: Sequence[int], run_dir: Path) -> "Runner":
        return Runner(self, seeds, run_dir)

    def report(self, results: Sequence[Result]) -> Parts:
        kinds = [one for one in results if one["settings"]["what"] in PRIMITIVES]
        nets = [one for one in results if one["settings"]["what"] not in PRIMITIVES]
        network, what = plain("network", lambda r: r["row"]), setting("operations", "what")
        before, after = figure("before, ms", "before_ms", 3), faster("after", "after")
        parts: Parts = []
        if kinds:
            claimed = plain("claimed", lambda r: CLAIMS[r["settings"]["what"]])
            columns = (what, network, plain("how many", lambda r: f"{r['count'][0]:.0f}"), before, after, claimed, AGAIN)
            order = list(PRIMITIVES)
            kinds = sorted(kinds, key=lambda one: order.index(one["settings"]["what"]))
            parts += ["## Each kind of operation", tabulate(kinds, columns), listed(kind_claims(kinds))]
        if nets:
            folded = faster("folded alone", "halfway")
            memory = plain("memory", lambda r: f"{statistics.mean(r['memory']) - 1:+.0%}" if "memory" in r else "")
            time_taken = plain("time", lambda r: f"{1 / statistics.mean(r['after_ratio']) - 1:+.0%}")
            passes = (network, setting("pass", "what"), before, folded, after, time_taken, memory, AGAIN)
            parts += ["## Whole networks (claimed: time -20 %, memory -30 %)"]
            parts += [tabulate(nets, passes), listed(net_claims(nets))]
        return parts


class Runner(study.Runner[GraphOptimisation]):
    """Measures a cell, with every seed."""

    def measure(self, cells: Sequence[Cell]) -> list[Result]:
        [cell] = cells
        begun = time.perf_counter()
        found = [self._figures(cell, seed) for seed in self.seeds]
        return [{**{name: [one[name] for one in found] for name in found[0]}, "seconds": time.perf_counter() - begun}]

    def _figures(self, cell: Cell, seed: int) -> dict[str, float]:
        config, what = self.study, cell.settings["what"]
        net, x = config.made(cell.row, seed)
        if what in PRIMITIVES:
            before, after, count = of_kind(net, x, what, seed)
            pieces = {"before": before, "after": after}
        else:
            count, before = 1, whole(net, x, seed) if what == WHOLE else step(net, x, seed)
            pieces = {"before": before, "after": layers.lowered(before)}
            if what == WHOLE:
                pieces = {"before": before, "halfway": layers.folded(before), "after": layers.optimised(before)}
        made = {name: layers.on_xla([piece]) for name, piece in pieces.items()}
        gate = layers.gated({name: run for name, (run, _) in made.items()}, config.rounds, config.tries)
        said = {**layers.gains(gate, ("halfway", "after")), "count": float(count)}
        return said | ({"memory": made["after"][1] / made["before"][1]} if what == WHOLE and made["before"][1] else {})


def whole(net: nn.Module, x: Any, seed: int) -> layers.Piece:
    """The forward pass."""
    return net.apply, layers.drawn(net, seed, x), (x,)


def step(net: nn.Module, x: Any, seed: int) -> layers.Piece:
    """The derivatives of a loss, in training mode where the net has one."""
    apply, variables, inputs = whole(net, x, seed)
    options: dict[str, Any] = {} if isinstance(net, LeNet5) else {"train": True}

    def derivatives(variables: Any, x: Any) -> Any:
        held = {name: tree for name, tree in variables.items() if name != "params"}

        def loss(params: Any) -> Any:
            out: Any = apply({"params": params, **held}, x, **options, mutable=list(held) or False)
            return -jax.nn.log_softmax(out[0] if held else out)[:, 0].mean()

        return jax.value_and_grad(loss)(variables["params"])

    return derivatives, variables, inputs


def operations(net: nn.Module, x: Any, kind: str) -> list[Any]:
    """The operations of a kind in the forward pass."""
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    return [eqn for eqn in graph.trace(net.apply, variables, x).equations() if eqn.primitive in PRIMITIVES[kind]]


def of_kind(net: nn.Module, x: Any, kind: str, seed: int) -> tuple[layers.Piece, layers.Piece, int]:
    """All operations of a kind in one program, before and after, and how many there are."""
    found, rng = operations(net, x, kind), np.random.default_rng(seed)
    has_norms = kind == "convolution" and "batch_stats" in jax.eval_shape(net.init, jax.random.key(0), x)
    drawn = [[jnp.asarray(rng.standard_normal(aval.shape, np.float32), aval.dtype) for aval in eqn.in_avals] for eqn in found]
    shapes = [_by_feature(eqn) if has_norms else () for eqn in found]
    norms = [tuple(jnp.asarray(rng.random(shape, np.float32)) for _ in range(2)) if shape else () for shape in shapes]

    def run(is_folded: bool) -> Callable[..., Any]:
        def all_of_them(norms: Any, operands: Any) -> Any:
            outs = []
            for eqn, given, norm in zip(found, operands, norms):
                out = _compat.bind(eqn.raw, given)[0]
                outs.append(out if not norm else out + norm[1] if is_folded else out * norm[0] + norm[1])
            return outs

        return all_of_them

    return (run(False), norms, (drawn,)), layers.lowered((run(True), norms, (drawn,))), len(found)


def _by_feature(eqn: Any) -> tuple[int, ...]:
    """The shape of what is the same for all but the features of a convolution's result."""
    [aval], axis = eqn.out_avals, eqn.params["dimension_numbers"].out_spec[1]
    return tuple(n if place == axis else 1 for place, n in enumerate(aval.shape))


def kind_claims(results: Sequence[Result]) -> list[str]:
    """Say of each kind in how many networks the papers' claim is reached.

    Example:
      >>> kind_claims([{"row": "a", "settings": {"what": "pool"}, "after_ratio": [1.5, 1.3], "again": [1.0, 1.0]}])
      ['pool: claimed +30 %; reached in 1 of 1 networks (a +40 %).']
    """
    said = []
    for kind in dict.fromkeys(one["settings"]["what"] for one in results):
        gains = {r["row"]: statistics.mean(r["after_ratio"]) - 1 for r in results if r["settings"]["what"] == kind}
        reached = [f"{name} {100 * gain:+.0f} %" for name, gain in gains.items() if gain >= _claim(kind)]
        names = f" ({', '.join(reached)})" if reached else ""
        among = f"reached in {len(reached)} of {len(gains)} networks{names}{_doubt(results, kind)}"
        said.append(f"{kind}: claimed {CLAIMS[kind]}; {among}.")
    return said


def net_claims(results: Sequence[Result]) -> list[str]:
    """Say of the forward passes in how many the claims for time and memory are reached.

    Example:
      >>> net_claims([{"row": "a", "settings": {"what": "whole"}, "after_ratio": [1.5], "memory": [0.9], "again": [1.0]}])
      ['time: claimed -20 %; reached by 1 of 1 networks (a).', 'memory: claimed -30 %; reached by 0 of 1 networks.']
    """
    mine = [r for r in results if r["settings"]["what"] == WHOLE]
    less: Mapping[str, tuple[float, Callable[[Result], float]]] = {
        "time": (LESS_TIME, lambda r: 1 / statistics.mean(r["after_ratio"])),
        "memory": (LESS_MEMORY, lambda r: statistics.mean(r.get("memory", [1.0]))),
    }
    said = []
    for name, (claim, share) in less.items():
        reached = [r["row"] for r in mine if share(r) <= 1 - claim]
        names = f" ({', '.join(reached)})" if reached else ""
        doubt = _doubt(mine, WHOLE) if name == "time" else ""
        said.append(f"{name}: claimed -{100 * claim:.0f} %; reached by {len(reached)} of {len(mine)} networks{names}{doubt}.")
    return said if mine else []


def listed(notes: Sequence[str]) -> str:
    """Notes as a list."""
    return "\n".join(f"- {note}" for note in notes)


def _claim(kind: str) -> float:
    return float(CLAIMS[kind].split()[0]) / 100


def _doubt(results: Sequence[Result], what: str) -> str:
    off = sum(not trusted(r) for r in results if r["settings"]["what"] == what)
    return f"; A/A off in {off} rows" if off else ""
