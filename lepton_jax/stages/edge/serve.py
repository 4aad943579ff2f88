"""The cloud's half served to the edge's, over a link that may be slowed down."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
import numpy as np

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import ArtifactError
from lepton_jax.stages.edge.choose import Link
from lepton_jax.stages.edge.cut import load_half
from lepton_jax.stages.serving import Remote, Server


@checked
def served(cloud: str | os.PathLike[str], *, port: int = 0, timeout: float = 60.0) -> Server:
    """Return a server of the cloud's half; use it as a context, or call its `run`.

    Args:
      cloud: the file of the half.
      port: 0 takes a free one.
      timeout: seconds for a frame.

    Raises:
      ArtifactError: for another file.

    Example:
      >>> import jax.numpy as jnp, os, tempfile
      >>> from lepton_jax import stages
      >>> from lepton_jax.stages import edge
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> x = jnp.ones((20, 4))
      >>> cut = edge.cut_at(stages.plan(net, v, x, count=2), 1, net, v, x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     edge.save(cut, f"{folder}/edge.lepton", f"{folder}/cloud.lepton")
      ...     with edge.served(f"{folder}/cloud.lepton") as server:
      ...         with edge.Client(f"{folder}/edge.lepton", server.address) as client:
      ...             print(client(x[:3])[0].shape)
      (3, 2)
    """
    half, coders, pair, side = load_half(cloud)
    if side != "cloud":
        raise ArtifactError(f"{cloud}: is the edge's half; serve the cloud's, and run this one with `lepton edge run`")

    def answer(*sent: np.ndarray) -> Any:
        if len(sent) != len(coders):
            raise ValueError(f"{len(coders)} values must come over the wire; got {len(sent)}")
        return half(*(coder.decode(one.astype(np.uint8).tobytes()) for coder, one in zip(coders, sent)))

    return Server(answer, pair, port=port, timeout=timeout)


@checked
class Client:
    """The edge's half, and a connection to the other one: ``client(*inputs)`` returns the flat outputs.

    Args:
      edge: the file of the half.
      address: host and port of the server.
      link: what the connection is slowed down to; None: not at all.
      slower: how many times slower this machine is made to be, by waiting; the link not.
      timeout: seconds for an answer.

    Attributes:
      link: as given; another one counts from the next call on.
      bytes: that crossed with the last call, without frames.
      seconds: that the last call took.

    Raises:
      ArtifactError: for another file.
      ValueError: for `slower` below 1.
      PeerError: if nobody serves there; when called, if the server dies, is late, or has the half of another model.

    Example:
      >>> import jax.numpy as jnp, os, tempfile
      >>> from lepton_jax import stages
      >>> from lepton_jax.stages import edge
      >>> net, v = lambda v, x: jnp.tanh(x @ v["a"]) @ v["b"], {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 2))}
      >>> x = jnp.ones((20, 4))
      >>> cut = edge.cut_at(stages.plan(net, v, x, count=2), 1, net, v, x)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     edge.save(cut, f"{folder}/edge.lepton", f"{folder}/cloud.lepton")
      ...     with edge.served(f"{folder}/cloud.lepton") as server:
      ...         with edge.Client(f"{folder}/edge.lepton", server.address) as client:
      ...             print(client(x[:3])[0].shape)
      (3, 2)
    """

    def __init__(
        self,
        edge: str | os.PathLike[str],
        address: tuple[str, int],
        *,
        link: Link | None = None,
        slower: float = 1.0,
        timeout: float = 60.0,
    ):
        if not 1 <= slower < float("inf"):
            raise ValueError(f"Client: slower must be 1 or more, and finite; got {slower}.")
        self._half, self._coders, pair, side = load_half(edge)
        if side != "edge":
            raise ArtifactError(f"{edge}: is the cloud's half; run the edge's, and serve this one with `lepton edge serve`")
        self.link, self._slower, self._remote = link, slower, Remote(address, pair, timeout=timeout)
        self.bytes, self.seconds = 0, 0.0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self._remote.close()

    def __call__(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        begin = time.perf_counter()
        values = jax.tree.leaves(self._half(*inputs))
        sent = [coder.encode(value) for coder, value in zip(self._coders, values, strict=True)]
        self.bytes = sum(map(len, sent))
        waits = (self._slower - 1) * (time.perf_counter() - begin)
        if waits or self.link is not None:
            time.sleep(waits + (0.0 if self.link is None else self.link.seconds(self.bytes)))
        outs = self._remote(*(np.frombuffer(data, np.uint8) for data in sent))
        self.seconds = time.perf_counter() - begin
        return outs
