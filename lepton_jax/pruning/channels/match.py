"""Which leaf of any tree a plan's path speaks of: a variable, its optimiser moment, its moving average."""

from collections.abc import Iterable

from lepton_jax.core.typing import Path

_PARAMS = "params"


class Matcher:
    """Finds the variable whose path a leaf's path ends in; the longest wins.

    The name of a collection may be left out: an optimiser made for ``variables['params']`` knows the leaf
    ``params/Dense_0/kernel`` as ``0/mu/Dense_0/kernel``.

    Args:
      paths: the paths of the variables.
    """

    def __init__(self, paths: Iterable[Path]):
        paths = list(paths)
        self.whole = set(paths)
        # Only trees with collections have a first key that can be dropped.
        collections = any(path.startswith(f"{_PARAMS}/") for path in paths)
        self.short: dict[Path, list[Path]] = {}
        if collections:
            for path in paths:
                self.short.setdefault(path.partition("/")[2], []).append(path)

    def find(self, path: Path) -> Path | None:
        """The variable that a leaf's path speaks of, or None.

        Raises:
          ValueError: if it could be any of several.

        Example:
          >>> matcher = Matcher(["params/Dense_0/kernel", "params/Dense_0/bias"])
          >>> matcher.find("0/mu/Dense_0/kernel"), matcher.find("1/count")
          ('params/Dense_0/kernel', None)
        """
        parts = path.split("/")
        for start in range(len(parts)):
            suffix = "/".join(parts[start:])
            if suffix in self.whole:
                return suffix
            found = [p for p in self.short.get(suffix, ()) if suffix]
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(
                    f"{path}: its path must end in that of one variable; it may be any of {', '.join(found)}. "
                    "Pass a tree that names the collection."
                )
        return None
