"""JSON that strangers wrote: one object, no key twice, all numbers finite, nothing too deep."""

import collections
import json
import math
from typing import Any

from lepton_jax.core.files import ArtifactError
from lepton_jax.core.foreign_text import shown


def parse_json(data: bytes | str, where: str) -> dict[str, Any]:
    """Return the object that the text holds.

    Args:
      data: the text.
      where: what it is, for the message.

    Raises:
      ArtifactError: if it is no JSON object, has a key twice in one object, or a number that is not finite.

    Example:
      >>> parse_json(b'{"a": 1, "a": 2}', "x.json")
      Traceback (most recent call last):
      ...
      lepton_jax.core.files.ArtifactError: x.json is not JSON: a key stands twice in one object: a
    """
    try:
        found = json.loads(data, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{where} is no JSON object but of type {type(found).__name__}")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        twice = collections.Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"a key stands twice in one object: {shown(twice)}")
    return out


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text[:20]} is no finite number")
