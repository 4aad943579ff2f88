"""Strict defaults for every test: no warning passes unseen, no array is broadcast across ranks by accident."""

import atexit
import contextlib
import ctypes
import gc
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import pytest
from jax._src import compilation_cache, compiler
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir

jax.config.update("jax_numpy_rank_promotion", "raise")


class Compiled:
    """What was compiled once in this run is read from a folder that its processes share.

    JAX's own cache writes in place, so a second process may read half a file: here a file appears whole or not at all.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder)

    def get(self, key: str) -> bytes | None:
        try:
            return (self._path / key).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, key: str, value: bytes) -> None:
        part = self._path / f"{key}.{os.getpid()}"
        part.write_bytes(value)
        part.replace(self._path / key)


if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # The process that collects the tests makes the folder; those that it starts to run them find it in their environment.
    if "LEPTON_JAX_TESTS_COMPILED" not in os.environ:
        os.environ["LEPTON_JAX_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="lepton-jax-tests-")
        atexit.register(shutil.rmtree, os.environ["LEPTON_JAX_TESTS_COMPILED"], ignore_errors=True)
    compilation_cache.get_file_cache = lambda path: (Compiled(path), path)
    jax.config.update("jax_compilation_cache_dir", os.environ["LEPTON_JAX_TESTS_COMPILED"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

_make_context = mlir.make_ir_context
_asked = itertools.count()
_context: Any = None


def _shared_context() -> Any:
    """The compiler's context, renewed now and then: making one takes a third of the time of a small program.

    Other threads make their own, as ever, and so does a program that is lowered while another one is: an operation would be put
    where that one stands.
    """
    global _context
    if threading.current_thread() is not threading.main_thread() or ir.Context.current is not None:
        return _make_context()
    if next(_asked) % 100 == 0:
        _context = _make_context()
    return _context


mlir.make_ir_context = _shared_context

OPTIMISED = {
    "artifact/test_artifact.py",  # the same bits in a new process, which compiles as users do
    "artifact/test_named_axes.py",  # the bits of a loaded program and of the live model
    "artifact/test_golden.py",  # bits that an optimised program wrote are read by one compiled here
    "native/test_native_formats.py",  # a program on packed leaves and another on dense ones differ by rounding alone
    "native/test_native_tensors.py",
    "graph/test_lowering_forms.py",  # what is not finite, in one program and in another
    "formats/test_number_formats.py",  # without jit, in jit, under vmap and in a scan: the same bits
    "stages/test_pipelines.py",  # stages, compiled one by one, and the whole
    "stages/test_serving.py",
    "stages/test_split_scans.py",
    "stages/test_stages.py",
    "test_contract.py",
}
"""Files of tests that compare one compiled program with another to the last bits, and so compile as users do.

All others compile for longer than they run, and leave out most of XLA's optimisations; with
`JAX_DISABLE_MOST_OPTIMIZATIONS=0` in the environment they all compile as users do.
"""
_PLAIN = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
QUICK = _PLAIN if version("jaxlib").startswith("0.10.") else {}  # other versions may not know these options
"""Unoptimised, a small program compiles in half the time by XLA's plainer emitters of loops, and in one piece."""
_UNOPTIMISED = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1").lower() not in {"0", "false"}
jax.config.update("jax_disable_most_optimizations", _UNOPTIMISED)
_compile_options = compiler.get_compile_options


def _quick_options(*args: Any, env_options_overrides: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """Flags of XLA are of a whole process; options are of one program."""
    quick = QUICK if jax.config.values["jax_disable_most_optimizations"] else {}
    return _compile_options(*args, env_options_overrides={**quick, **(env_options_overrides or {})}, **kwargs)


compiler.get_compile_options = _quick_options


GROWTH = 1.0e9
"""Bytes by which a process may grow before it forgets what it compiled."""


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    return 0


def forget() -> int:
    """Drop what was traced and compiled, give the memory back, and return what is still held."""
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # of glibc; other systems do it by themselves
    return resident()


gc.freeze()
gc.set_threshold(50_000, 50, 50)  # tracing makes many objects and little garbage: a tenth of the time went into looking for it
_held = resident()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Compile without most optimisations, whatever ran before, but in the files that must not; keep memory bounded."""
    global _held
    tests = Path(__file__).parent
    # The hook sees the doctests of other folders too.
    inside = item.path.is_relative_to(tests) and item.path.relative_to(tests).as_posix() in OPTIMISED
    unoptimised = _UNOPTIMISED and not inside
    if jax.config.values["jax_disable_most_optimizations"] != unoptimised:
        jax.clear_caches()  # they do not know how their programs were compiled, and results differ in the last bit
        jax.config.update("jax_disable_most_optimizations", unoptimised)
    result = yield
    if resident() > _held + GROWTH:
        _held = forget()
    return result


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process one half of the tests, in order: what the tests of a file share is then compiled once."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture
def quick() -> dict[str, Any]:
    """Options of `jax.jit` for a program of a file in `OPTIMISED` whose own last bits do not matter: a seventh of the time."""
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, **QUICK} if _UNOPTIMISED else {}


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key; split it, or fold numbers in, for more."""
    return jax.random.key(0)
