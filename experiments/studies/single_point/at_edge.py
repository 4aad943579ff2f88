"""Networks cut between the edge and the cloud: accuracy against bytes on the wire, over cuts and bits."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lepton_jax import stages
from lepton_jax.core.typing import PyTree
from lepton_jax.data import Split
from lepton_jax.graph.trace import Apply, Equation
from lepton_jax.stages import edge
from lepton_jax.stages.serving.frames import ARRAYS, pack, pack_arrays

Task = Literal["fashion_mnist", "cifar10"]
FASHION: Task = "fashion_mnist"
CIFAR: Task = "cifar10"
CUTS: dict[Task, int] = {FASHION: 3, CIFAR: 4}
"""Tasks, and how many cuts of each are measured."""
_BATCH = 500
REQUEST = 100
"""Images that cross together, where a hundred do."""
_ALONE = 4
"""Of every batch that is tested."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and its data.

    Args:
      apply: ``apply(variables, images) -> logits``.
      variables: trained.
      known: training images that wires are calibrated on.
      test: images and labels.
      task: of `CUTS`.
    """

    apply: Apply
    variables: PyTree
    known: np.ndarray
    test: Split
    task: Task

    @cached_property
    def plan(self) -> stages.Plan:
        """Where it can be cut: the small net behind each pool, another where the work is halved and halved again."""
        balance: Any = _pools if self.task == FASHION else "macs"
        example = jax.ShapeDtypeStruct((1, *self.test.images.shape[1:]), jnp.float32)
        return stages.plan(self.apply, self.variables, example, count=CUTS[self.task] + 1, balance=balance)

    def error(self, outputs: Any) -> float:
        """The fraction of the test images of which these are no right answers."""
        return float(np.mean(np.concatenate(outputs).argmax(-1) != self.test.labels))

    @cached_property
    def whole_error(self) -> float:
        """Of the network as it is."""
        run = jax.jit(self.apply)
        return self.error([run(self.variables, x) for x in self.batches()])

    def batches(self) -> list[Any]:
        """The test images, some at a time."""
        return [jnp.asarray(self.test.images[at : at + _BATCH]) for at in range(0, len(self.test.images), _BATCH)]


def _pools(eqn: Equation) -> float:
    return float(eqn.primitive in ("reduce_window_max", "dot_general"))


def figures(net: Trained, place: int, widths: Sequence[int]) -> list[dict[str, float]]:
    """What crosses at a cut, an image, and what the other side makes of it, for each number of bits.

    Returns:
      ``error``; ``wire_bytes`` with the frames, of a hundred images together; ``alone_bytes``, of one by itself;
      ``raw_bytes``, in float32; ``of_entropy``: the wire over the levels' entropy; ``share`` of the work at the edge.
    """
    known = jnp.asarray(net.known)
    cut = edge.cut_at(net.plan, place, net.apply, net.variables, known)
    calibration, values = cut.edge(known), [[np.asarray(one) for one in cut.edge(x)] for x in net.batches()]
    work = [facts.macs for facts in net.plan.stages_of]
    share = sum(work[:place]) / sum(work)
    found = []
    for bits in widths:
        coders = [edge.fit(np.asarray(value), edge.Wire(bits=bits)) for value in calibration]
        codes = [[coder.codes(value) for coder, value in zip(coders, some, strict=True)] for some in values]
        wire, alone = crossing(coders, values)
        outputs = [cut.cloud(*(coder.values(one) for coder, one in zip(coders, some))) for some in codes]
        floor = sum(edge.entropy_bytes(np.concatenate(some)) for some in zip(*codes))
        count = len(net.test.images)
        sizes = {"wire_bytes": wire / count, "alone_bytes": alone, "of_entropy": wire / floor}
        raw = sum(one.nbytes for some in values for one in some) / count
        found.append({"error": net.error([*map(np.asarray, outputs)]), **sizes, "raw_bytes": raw, "share": share})
    return found


def crossing(coders: Sequence[edge.Coder], values: Sequence[Sequence[np.ndarray]]) -> tuple[int, float]:
    """Bytes of all values in frames of a hundred images, and the mean of some images alone; what comes back is checked."""
    wire, alone = 0, list[int]()
    for some in values:
        for at in range(0, len(some[0]), REQUEST):
            sent = [coder.encode(value[at : at + REQUEST]) for coder, value in zip(coders, some)]
            wire += framed(sent)
        alone += [
            framed([coder.encode(value[at : at + 1]) for coder, value in zip(coders, some)])
            for at in range(min(_ALONE, len(some[0])))
        ]
        for coder, value, data in zip(coders, some, sent):
            assert np.array_equal(coder.decode(data), coder.values(coder.codes(value[at:])))
    return wire, float(np.mean(alone))


def framed(sent: Sequence[bytes]) -> int:
    """Bytes of coded values in the frame in which they cross.

    Example:
      >>> framed([bytes(100)])
      143
    """
    return len(pack(ARRAYS, bytes(16), pack_arrays([np.frombuffer(data, np.uint8) for data in sent])))
