"""What becomes of a hostile file: it must be refused in the documented way, or read right; soon, and in little memory."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lepton_jax.core.packed import is_packed

MOST_SECONDS, MOST_BYTES = 1.0, 256_000_000
"""Of processor time for a file, and of memory beyond what it gives."""
_LONGEST = 20_000


class Outcome(NamedTuple):
    """What became of one file.

    Args:
      what: was done to it.
      refused: whether it ended in a documented error.
      wrong: what was wrong with the outcome, or "".
      seconds: of processor time that reading took.
      growth: by how many bytes the process's peak memory grew.
    """

    what: str
    refused: bool
    wrong: str
    seconds: float = 0.0
    growth: int = 0


def judged(
    what: str,
    read: Callable[[], Any],
    check: Callable[[Any], str],
    *,
    errors: tuple[type[Exception], ...] = (ValueError,),
    says: Callable[[str], bool] = lambda text: True,
    seconds: float = MOST_SECONDS,
) -> Outcome:
    """Read one hostile file.

    Args:
      what: was done to it.
      read: reads it, to a tree of arrays; warnings are errors.
      check: why what was read is not right, or "".
      errors: how it may be refused.
      says: whether an error's text says enough.
      seconds: of processor time that it may take.
    """
    before, begin, refused, wrong, found = peak(), time.process_time(), False, "", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)
            found = read()
    except errors as error:
        refused, text = True, str(error)
        if len(text) > _LONGEST or not text.replace("\n", "").isprintable() or not says(text):
            wrong = f"says {text[:300]!r}"
    except Exception as error:  # the very thing that must not be
        wrong = f"{type(error).__name__}: {str(error)[:300]}"
    taken, growth = time.process_time() - begin, peak() - before
    leaves = jax.tree.leaves(getattr(found, "packed", found), is_leaf=is_packed)
    if not (refused or wrong):
        strange = [leaf for leaf in leaves if not (hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex)))]
        wrong = f"returns {strange[0]!r}" if strange else check(found)
    returned = sum(getattr(leaf, "nbytes", 0) for leaf in leaves)
    if not wrong and (taken > seconds or growth > MOST_BYTES + returned):
        wrong = f"took {taken:.2f} s and {growth / 1e6:.0f} MB"
    return Outcome(what, refused, wrong, taken, growth)


def peak() -> int:
    """The most memory that the process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
