"""Packages that are installed by an extra of this one."""

import importlib
from typing import Any

from lepton_jax.core.arguments import checked


@checked
def import_extra(module: str, extra: str) -> Any:
    """Import an optional package.

    Args:
      module: its name.
      extra: of this package, which installs it.

    Raises:
      ImportError: if it is not there, with the command that installs it.

    Example:
      >>> import_extra("no_such_package", "tensorboard")
      Traceback (most recent call last):
      ...
      ImportError: no_such_package is not installed; it is in an extra: pip install 'lepton-jax[tensorboard]'.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (module, package):
            raise
        raise ImportError(f"{package} is not installed; it is in an extra: pip install 'lepton-jax[{extra}]'.") from error


def pyplot() -> Any:
    """Return `matplotlib.pyplot`, set to draw into files. It is slow to import, so pictures ask for it when they are drawn.

    Raises:
      ImportError: if it is not there, with the command that installs it.

    Example:
      >>> pyplot().get_backend().lower()
      'agg'
    """
    import_extra("matplotlib", "plots").use("Agg")
    return importlib.import_module("matplotlib.pyplot")
