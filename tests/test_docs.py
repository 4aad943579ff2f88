"""Every public name says what it does and shows it."""

import importlib
import inspect
import pkgutil

import pytest

import lepton_jax

PACKAGES = [
    "lepton_jax",
    *(info.name for info in pkgutil.walk_packages(lepton_jax.__path__, "lepton_jax.") if info.ispkg),
]


def public() -> dict[str, object]:
    """What the packages offer, by full name; functions and classes, aliases of types left out."""
    found = {}
    for package in map(importlib.import_module, PACKAGES):
        assert hasattr(package, "__all__"), f"{package.__name__} has no __all__"
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value) or inspect.isclass(value):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_true(package):
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_public_name_has_a_docstring_with_an_example():
    lacking = [
        name
        for name, value in public().items()
        if not value.__doc__ or (">>>" not in value.__doc__ and not _is_plain_record(value))
    ]
    assert not lacking, "\n".join(lacking)


def _is_plain_record(value: object) -> bool:
    """Exceptions, protocols and states hold no behaviour that an example could show."""
    if not inspect.isclass(value):
        return False
    return issubclass(value, Exception) or getattr(value, "_is_protocol", False) or hasattr(value, "_fields")
