"""Strict defaults for every test: no warning passes unseen, no array is broadcast across ranks by accident."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What several tests compile alike is compiled once. A folder a process: the cache's files are not written atomically.
    compiled = tempfile.mkdtemp(prefix="lepton-jax-tests-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", compiled)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

UNOPTIMISED = {"distillation", "experiments", "lowrank", "models", "pruning"}
"""Folders whose tests compile for longer than they run, and do not hang on the compiler's last optimisations."""
_ALWAYS = jax.config.values["jax_disable_most_optimizations"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Compile without most optimisations in these folders; everywhere else, whatever ran before, as users do."""
    tests = Path(__file__).parent
    # The hook sees the doctests of other folders too.
    inside = item.path.is_relative_to(tests) and not UNOPTIMISED.isdisjoint(item.path.relative_to(tests).parts)
    if jax.config.values["jax_disable_most_optimizations"] != (_ALWAYS or inside):
        jax.clear_caches()  # they do not know how their programs were compiled, and results differ in the last bit
        jax.config.update("jax_disable_most_optimizations", _ALWAYS or inside)
    return (yield)


@pytest.fixture
def key() -> jax.Array:
    """A fixed random key; split it, or fold numbers in, for more."""
    return jax.random.key(0)
