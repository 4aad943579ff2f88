"""``lepton edge``: one half of a cut model served, the other run."""

import dataclasses
import io
from pathlib import Path
from typing import Literal

import numpy as np
from tyro.conf import Positional

from lepton_jax.command_line.console import Answer, Command
from lepton_jax.core.files import write_atomic
from lepton_jax.interchange.npz import read_npy
from lepton_jax.stages.edge import Client, Link, served


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edge(Command):
    """Serve the cloud's half of a cut model on this machine, or run the edge's half against it.

    Halves are written by `lepton_jax.stages.edge.save`. With --mbit and --rtt-ms the link is slowed down.

    Examples:
      lepton edge serve cloud.lepton --port 8765
      lepton edge run edge.lepton --port 8765 --input images.npy --mbit 10 --rtt-ms 20
    """

    what: Positional[Literal["serve", "run"]]
    """Serve the cloud's half, or run the edge's."""
    file: Positional[Path]
    """The half's .lepton file."""
    port: int = 8765
    """Where the cloud's half is served, on this machine."""
    input: tuple[Path, ...] = ()
    """A .npy file for each input; for run."""
    output: Path | None = None
    """A .npy file for the first output; for run."""
    mbit: float | None = None
    """The link's rate in 10^6 bits a second; without it, it is not slowed down."""
    rtt_ms: float = 0.0
    """Milliseconds there and back."""
    timeout: float = 60.0
    """Seconds for an answer."""

    def __post_init__(self) -> None:
        if self.what == "run" and not self.input:
            raise ValueError("lepton edge run: --input needs a .npy file for each input of the model.")
        if not 0 < self.port < 65536:
            raise ValueError(f"--port must be from 1 to 65535; got {self.port}.")

    def answer(self) -> Answer:
        if self.what == "serve":
            server = served(self.file, port=self.port, timeout=self.timeout)
            print(f"serving {self.file} at {server.address[0]}:{server.address[1]}; end with Ctrl-C", flush=True)
            server.run()
            return Answer({}, "ended")
        link = None if self.mbit is None else Link(self.mbit, self.rtt_ms)
        with Client(self.file, ("127.0.0.1", self.port), link=link, timeout=self.timeout) as client:
            arrays = [read_npy(path) for path in self.input]
            outs = client(*arrays)
        if self.output is not None:
            file = io.BytesIO()
            np.save(file, outs[0])
            write_atomic(self.output, file.getbuffer())
        shapes = [f"{out.dtype}{list(out.shape)}" for out in map(np.asarray, outs)]
        facts = {"bytes": client.bytes, "seconds": client.seconds, "outputs": shapes}
        return Answer(facts, f"{client.bytes:,} bytes crossed; {1e3 * client.seconds:.1f} ms; outputs {', '.join(shapes)}")
