"""A plan as text: JSON to keep, and a description to read."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from lepton_jax.pruning.channels.groups import Group, Slices

if TYPE_CHECKING:
    from lepton_jax.pruning.channels.plan import Plan

_FORMAT = "lepton_jax.channels/1"


def to_json(plan: "Plan") -> str:
    """The plan as a JSON text."""
    return json.dumps(
        {
            "format": _FORMAT,
            "shapes": {path: list(shape) for path, shape in plan.shapes.items()},
            "groups": [
                {
                    "slices": [{"path": s.path, "axis": s.axis, "indices": s.indices.tolist()} for s in group.slices],
                    "removed": list(group.removed),
                }
                for group in plan.groups
            ],
            "fixed": [{"path": path, "axis": axis, "why": list(why)} for (path, axis), why in plan.fixed.items()],
            "unknown": list(plan.unknown),
            "unread": list(plan.unread),
        }
    )


def from_json(text: str) -> dict[str, Any]:
    """The fields of a plan from the text of `to_json`.

    Raises:
      ValueError: if the text is no such plan.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"Plan.from_json needs a text of Plan.to_json, of the format {_FORMAT!r}; got {found!r}.")

    def slices(found: Any) -> tuple[Slices, ...]:
        return tuple(Slices(path=s["path"], axis=int(s["axis"]), indices=np.asarray(s["indices"], np.int64)) for s in found)

    return {
        "shapes": {path: tuple(shape) for path, shape in data["shapes"].items()},
        "groups": tuple(Group(slices=slices(g["slices"]), removed=tuple(g["removed"])) for g in data["groups"]),
        "fixed": {(entry["path"], entry["axis"]): tuple(entry["why"]) for entry in data["fixed"]},
        "unknown": tuple(data["unknown"]),
        "unread": tuple(data.get("unread", ())),  # earlier texts do not say
    }


def summary(plan: "Plan") -> str:
    """How much goes, on one line."""
    size = sum(int(np.prod(shape)) for shape in plan.shapes.values())
    left = sum(int(np.prod(plan.left(path))) for path in plan.shapes)
    channels, gone = sum(g.size for g in plan.groups), sum(len(g.removed) for g in plan.groups)
    return f"{gone} of {channels} channels in {len(plan.groups)} groups removed; {size:,} values become {left:,}"


def not_read(plan: "Plan") -> str:
    """The leaves that the function does not read, on one line; empty if there are none."""
    return f"not read by the function: {', '.join(plan.unread)}" if plan.unread else ""


def describe(plan: "Plan") -> str:
    """Every group with its coupled slices, by path, then the fixed axes and why, and the leaves that are not read."""
    lines = [summary(plan), *map(str, plan.groups)]
    lines += [f"fixed: {path} axis {axis} ({'; '.join(why)})" for (path, axis), why in plan.fixed.items()]
    if plan.unknown:
        lines.append(f"unknown primitives, whose axes are fixed: {', '.join(plan.unknown)}")
    return "\n".join(filter(None, [*lines, not_read(plan)]))
