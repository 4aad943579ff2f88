"""From the input to the answer over a slowed link of this machine: predicted from profiles, and measured, for every cut."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.single_point.at_edge import Trained
from lepton_jax import save
from lepton_jax.stages import Remote, edge
from lepton_jax.stages.serving import model_name, started

Request = Callable[[edge.Link], Any]
NOTHING, IMAGE = "nothing: all at the edge", "the input, raw"


def options(cuts: int) -> tuple[str, ...]:
    """The ways that are measured, as `edge.choose` names them."""
    return (NOTHING, IMAGE, *(f"before stage {place}" for place in range(1, cuts + 1)))


def measure(
    net: Trained, links: Sequence[edge.Link], folder: Path, *, bits: int, images: int, slower: float, rounds: int
) -> list[list[dict[str, float]]]:
    """Predict and measure all ways at all links.

    The cloud's half is a process of its own; the edge's is this one, which waits until it is as slow as it is to be. What is
    predicted is of least times of each stage by itself; measured is the least of some requests, the ways in turn.

    Args:
      net: what is cut.
      links: to the cloud.
      folder: gets the halves' files.
      bits: on the wire.
      images: of a request.
      slower: how many times slower than the cloud the edge is.
      rounds: requests of each way.

    Returns:
      for each link and way ``predicted_ms``, ``measured_ms``, ``median_ms``, and ``chosen``, 1 or 0.
    """
    x, wire = jnp.asarray(net.test.images[:images]), edge.Wire(bits=bits)
    names = options(len(net.plan) - 1)
    with contextlib.ExitStack() as stack:
        requests = [local(net, x, slower), stack.enter_context(remote_whole(net, x, folder))]
        for place in range(1, len(net.plan)):
            requests.append(stack.enter_context(remote_half(net, x, place, wire, folder, slower)))
        known = edge.profile(net.plan, net.apply, net.variables, x, wires=[wire], rounds=rounds)
        found = []
        for link in links:
            choice = edge.choose(net.plan, edge=known.times(slower), cloud=known, link=link, wire=wire)
            predicted = {option.name: option.seconds for option in choice.options}
            taken: list[list[float]] = [[] for _ in requests]
            for number in range(rounds + 1):
                for request, kept in zip(requests, taken):
                    begin = time.perf_counter()
                    request(link)
                    kept += [time.perf_counter() - begin] if number else []
            # JPEG is no way that is measured, so the best of those that are is chosen.
            best = min(names, key=predicted.__getitem__)
            found.append(
                [
                    {
                        "predicted_ms": 1e3 * predicted[name],
                        "measured_ms": 1e3 * min(some),
                        "median_ms": 1e3 * statistics.median(some),
                        "chosen": float(name == best),
                    }
                    for name, some in zip(names, taken, strict=True)
                ]
            )
    return found


def local(net: Trained, x: Any, slower: float) -> Request:
    """All at the edge."""
    run = jax.jit(net.apply)

    def request(_: edge.Link) -> Any:
        begin = time.perf_counter()
        out = jax.block_until_ready(run(net.variables, x))
        time.sleep((slower - 1) * (time.perf_counter() - begin))
        return out

    return request


@contextlib.contextmanager
def remote_whole(net: Trained, x: Any, folder: Path) -> Iterator[Request]:
    """The images sent in a byte a number, all in the cloud."""
    low, high = float(x.min()), float(x.max())
    step = (high - low) / 255

    def apply(variables: Any, pixels: Any) -> Any:
        return net.apply(variables, pixels.astype(jnp.float32) * step + low)

    pixels = np.asarray(jnp.round((x - low) / step)).astype(np.uint8)
    path = folder / f"{net.task}-whole.lepton"
    save(path, apply, net.variables, pixels)
    with started("lepton_jax.stages.serving", path) as address, Remote(address, model_name(path.read_bytes())) as remote:

        def request(link: edge.Link) -> Any:
            time.sleep(link.seconds(pixels.nbytes))
            return remote(pixels)

        yield request


@contextlib.contextmanager
def remote_half(net: Trained, x: Any, place: int, wire: edge.Wire, folder: Path, slower: float) -> Iterator[Request]:
    """Cut before a stage."""
    files = [folder / f"{net.task}-{place}-{side}.lepton" for side in ("edge", "cloud")]
    cut = edge.cut_at(net.plan, place, net.apply, net.variables, jnp.asarray(net.known), wire=wire)
    edge.save(cut, *files)
    with started("lepton_jax.stages.edge", files[1]) as address, edge.Client(files[0], address, slower=slower) as client:

        def request(link: edge.Link) -> Any:
            client.link = link
            return client(x)

        yield request
