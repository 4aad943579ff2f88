"""Pages of the API: one a package, every public name on the page of the package that it is defined in."""

import functools
import importlib
import inspect
import pkgutil
from types import ModuleType

import lepton_jax

HIDDEN = ("lepton_jax.deploy.to_onnx.rules", "lepton_jax.interchange.onnx.rules", "lepton_jax.coding")
"""Packages that offer nothing to a caller of their own."""


def packages() -> dict[str, ModuleType]:
    """All packages, by name."""
    found = [info.name for info in pkgutil.walk_packages(lepton_jax.__path__, "lepton_jax.") if info.ispkg]
    return {name: importlib.import_module(name) for name in ("lepton_jax", *found) if name not in HIDDEN}


def offered(package: ModuleType) -> dict[str, str]:
    """What a package offers, functions and classes, by name: the full path of its definition."""
    values = {name: getattr(package, name) for name in package.__all__}
    return {
        name: f"{value.__module__}.{value.__qualname__}"
        for name, value in values.items()
        if (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__.startswith("lepton_jax")
    }


@functools.cache
def homes() -> dict[str, str]:
    """The package on whose page a definition stands: the one it lies in, or the first that offers it."""
    found: dict[str, str] = {}
    for package, module in packages().items():
        for path in offered(module).values():
            known = found.get(path)
            if known is None or (path.startswith(f"{package}.") and len(package) > len(known)):
                found[path] = package
    return found


@functools.cache
def targets() -> dict[str, str]:
    """Full paths by what docstrings write in backticks: ``gptq``, ``quantization.gptq``, ``channels.plan``."""
    found: dict[str, set[str]] = {}
    for package, module in packages().items():
        short = package.removeprefix("lepton_jax").lstrip(".")
        for name, path in offered(module).items():
            whole = f"{short}.{name}" if short else name
            last = f"{short.rpartition('.')[2]}.{name}"
            for written in {name, last, whole, f"lepton_jax.{whole}", f"lepton.{whole}"}:
                found.setdefault(written, set()).add(path)
    return {written: paths.pop() for written, paths in found.items() if len(paths) == 1}


def navigation() -> list[str | dict[str, str]]:
    """The pages in the order of the packages."""
    return [{package.removeprefix("lepton_jax.") or "lepton_jax": f"api/{package}.md"} for package in packages()]


def pages() -> dict[str, str]:
    """Each page's Markdown by its path."""
    return {f"api/{package}.md": _page(package, module) for package, module in packages().items()}


def _page(package: str, module: ModuleType) -> str:
    here = {name: path for name, path in offered(module).items() if homes()[path] == package}
    there = {name: path for name, path in offered(module).items() if homes()[path] != package}
    lines = [f"# {package.removeprefix('lepton_jax.')}", inspect.getdoc(module) or "", ""]
    if here:
        above = package.rpartition(".")[0]
        if above in packages() and set(here) <= set(packages()[above].__all__):
            lines += [f"All of it is in [`{above}`]({above}.md) too.", ""]
        lines += ["| name | what |", "| --- | --- |"]
        lines += [_row(getattr(module, name), name, path) for name, path in here.items()]
    if there:
        lines += [
            "",
            "Documented with the packages they come from: " + ", ".join(f"[`{n}`][{p}]" for n, p in there.items()) + ".",
        ]
    for path in here.values():
        lines += ["", f"::: {path}"]
    return "\n".join(lines) + "\n"


def _row(value: object, name: str, path: str) -> str:
    first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    return f"| [`{name}`][{path}] | {first} |"
