"""Units in other processes: the same bits, and a clear error in time for whatever goes wrong."""

import contextlib
import os
import re
import signal
import socket
import struct
import threading
import time
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lepton_jax import stages
from lepton_jax.stages.serving import Apart, PeerError, Remote, Server, in_line, model_name
from lepton_jax.stages.serving.frames import ARRAYS, pack, pack_arrays, unpack_arrays

NAME = model_name(b"the model")
SOME = [np.arange(6, dtype=np.int32).reshape(2, 3), np.float32(1.5), np.zeros((0, 4), bool), np.ones(3, ml_dtypes.bfloat16)]


def test_arrays_come_back_as_they_were():
    rng = np.random.default_rng(0)
    arrays = [*SOME, rng.normal(size=(2, 1, 3)), np.array([np.nan, -0.0, np.inf], np.float16), np.arange(8)[::-2]]
    for before, after in zip(arrays, unpack_arrays(pack_arrays(arrays)), strict=True):
        assert after.dtype == np.asarray(before).dtype
        assert after.shape == np.shape(before)
        assert after.tobytes() == np.ascontiguousarray(before).tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_no_body_of_bytes_does_harm(seed):
    rng, body = np.random.default_rng(seed), bytearray(pack_arrays(SOME))
    for _ in range(300):
        changed = body.copy()
        for place in rng.integers(0, len(body), 3):
            changed[place] = rng.integers(256)
        cut = bytes(changed[: rng.integers(len(body) + 1)])
        with contextlib.suppress(PeerError):
            unpack_arrays(cut)
    for declared in (b"\xff\xff", b"\x01\x00\x07float32\x04" + b"\xff" * 16, b"\x01\x00\x06object\x00" + bytes(8), b""):
        with pytest.raises(PeerError):
            unpack_arrays(declared)


def answered(server, sent, end=True):
    """What a server says to bytes."""
    with socket.create_connection(server.address, 5) as peer:
        peer.sendall(sent)
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_WR) if end else None
        found = b""
        while piece := peer.recv(1 << 16):
            found += piece
    return found.decode("latin1")


def test_bad_frames_are_told_so_and_the_server_goes_on():
    good = pack(ARRAYS, NAME, pack_arrays([np.arange(3)]))
    damaged = bytearray(good)
    damaged[40] ^= 1
    huge = struct.pack("<4sBB16sI", b"LPTF", 1, ARRAYS, NAME, 1 << 31)
    false_body = struct.pack("<4sBB16sI", b"LPTF", 1, ARRAYS, NAME, 3) + b"\x05\x00\x01"
    with Server(lambda x: (x + 1,), NAME, timeout=0.5, most=1 << 16) as server:
        cases = [
            (good[: len(good) // 2], "ended in the middle of a frame"),
            (pack(ARRAYS, model_name(b"another"), pack_arrays([])), "a frame of another model"),
            (bytes(damaged), "its checksum is wrong"),
            (huge, "65536 are allowed"),
            (b"GET / HTTP/1.1\r\n" + bytes(30), "what is no frame"),
            (false_body + struct.pack("<I", zlib.crc32(false_body)), "holds no arrays"),
            (pack(ARRAYS, NAME, pack_arrays([np.ones(2), np.ones(2)])), "the unit refused"),
        ]
        for sent, said in cases:
            assert said in answered(server, sent), said
        begin = time.monotonic()
        assert "did not send the rest of a frame within the time limit of 0.5 s" in answered(server, good[:30], end=False)
        assert time.monotonic() - begin < 5
        with Remote(server.address, NAME, timeout=5) as remote:
            assert remote(np.arange(3))[0].tolist() == [1, 2, 3]
            with pytest.raises(PeerError, match="the unit refused"):
                remote(np.arange(3), np.arange(3))
            assert remote(np.arange(2))[0].tolist() == [1, 2]
            with pytest.raises(PeerError, match="65536 are allowed"):
                remote(np.zeros(1 << 16))


def drips(listening, seconds):
    """A peer that answers byte by byte."""
    connected, _ = listening.accept()
    with connected:
        connected.recv(1 << 16)
        end = time.monotonic() + seconds
        try:
            for byte in pack(ARRAYS, NAME, pack_arrays([np.arange(50)])):
                connected.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() > end:
                    return
        except OSError:
            return


def test_a_slow_peer_is_given_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drips, args=(listening, 8))
        thread.start()
        remote = Remote(listening.getsockname()[:2], NAME, timeout=0.6)
        begin = time.monotonic()
        with pytest.raises(PeerError, match=r"within the time limit of 0\.6 s"):
            remote(np.arange(2))
        assert time.monotonic() - begin < 3
        with pytest.raises(PeerError, match="is gone"):  # no late answer is taken for another
            remote(np.arange(2))
        thread.join(10)
        assert not thread.is_alive()


def test_a_slow_unit_holds_back_those_before_it():
    made, most = [], [0]
    done = []

    def batches():
        for number in range(8):
            made.append(number)
            most[0] = max(most[0], len(made) - len(done))
            yield (number,)

    def slow(x):
        time.sleep(0.03)
        done.append(x)
        return (x * 10,)

    assert list(in_line([lambda x: (x + 1,), slow], batches())) == [(10 * (n + 1),) for n in range(8)]
    assert most[0] <= 6

    def fails(x):
        raise PeerError(f"no {x}")

    with pytest.raises(PeerError, match="no 5"):
        list(in_line([lambda x: (x,), fails], [(5,), (6,)]))


def test_stage_files_run_in_three_processes_until_one_is_killed(tmp_path):
    def apply(v, x):
        for w in v["layers"]:
            x = jnp.tanh(x @ w)
        return {"out": x, "sum": x.sum(-1)}

    rng = np.random.default_rng(0)
    v = {"layers": [jnp.asarray(rng.normal(size=(8, 8)), jnp.float32) for _ in range(6)]}
    batches = [jnp.asarray(rng.normal(size=(4, 8)), jnp.float32) for _ in range(4)]
    made = stages.plan(apply, v, batches[0], count=3)
    stages.save(tmp_path, made, apply, v, batches[0])
    saved = stages.load(tmp_path)
    with Apart(tmp_path, timeout=20) as run:
        for x, outs in zip(batches, run.run([(x,) for x in batches]), strict=True):
            for mine, theirs in zip(jax.tree.leaves(saved(x)), outs, strict=True):
                np.testing.assert_array_equal(mine, theirs)
                assert mine.dtype == theirs.dtype
        assert len({process.pid for process in run.processes} | {os.getpid()}) == 4
        os.kill(run.processes[1].pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(PeerError, match=re.compile("ended without an answer|is gone")):
            run(batches[0])
        assert time.monotonic() - begin < 10
    assert all(process.poll() is not None for process in run.processes)
