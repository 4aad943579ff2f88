"""`save` a packed model as one file, and `load` it without the model's code."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax

from lepton_jax.artifact import container, program, structure
from lepton_jax.artifact.account import Account, Parts, count, parts_of
from lepton_jax.artifact.inputs import Axes, check_inputs, example_inputs, inputs_of, names_of, plain
from lepton_jax.artifact.reading import read_manifest, read_tensors
from lepton_jax.artifact.tensors import encode_tree
from lepton_jax.core import paths
from lepton_jax.core.arguments import checked, checked_but
from lepton_jax.core.errors import ArtifactError, check_whole
from lepton_jax.core.limits import Allowance, most_turns
from lepton_jax.core.packed import dense, is_packed, unpack
from lepton_jax.core.typing import PyTree

# What may be saved: anything, since whoever loads it may raise the limit.
_ALL_BYTES = 1 << 62


class Artifact:
    """A loaded model: a program and its weights.

    Attributes:
      packed: the variables with their packed leaves, in dicts, lists and tuples.
      variables: the dense variables, bit for bit those that were saved.
      manifest: what the file says about itself: version, tree, tensors, platforms, recipe, metrics.
      lowering: whether a call does otherwise what XLA on CPU is slow at; see `load`.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      ...     model = load(f"{folder}/m.lepton")
      >>> model(jnp.array([[3.0, 4.0]])).tolist(), model.variables["w"].tolist(), model.manifest["batch"]
      ([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], 'symbolic')
    """

    def __init__(self, packed: PyTree, manifest: dict[str, Any], code: bytes, parts: Parts, native_code: bytes = b""):
        self.packed, self.lowering = packed, False
        self._parts = parts
        self._manifest = manifest
        self._code = code
        self._native_code = native_code

    @cached_property
    def variables(self) -> PyTree:
        with jax.ensure_compile_time_eval():  # what is kept must hold no tracers of a caller's jit
            return dense(self.packed)

    @cached_property
    def _exported(self) -> Any:
        return program.deserialize(self._code)

    @cached_property
    def _weights(self) -> list[jax.Array]:
        # Not from `variables`: jax sorts the keys of a mapping, and the program's order is the file's.
        with jax.ensure_compile_time_eval():
            return program.plain_weights(dense(list(structure.in_order(self.packed))))

    @cached_property
    def _run(self) -> Callable[..., Any]:
        return program.runner(self._exported)

    @cached_property
    def _run_fast(self) -> Callable[..., Any]:
        return program.runner(self._exported, lowering=True)

    @cached_property
    def _call(self) -> Callable[..., Any]:
        return jax.jit(self._run_fast if self.lowering else self._run)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return {**self._manifest, "platforms": list(self._exported.platforms)}

    def __call__(self, *inputs: Any) -> Any:
        """Run the program: ``apply(variables, *inputs)``, compiled once for all inputs of the same shapes.

        On the backend that it was saved on it gives what ``jax.jit(apply)`` gives, bit for bit, or with ``load(lowering=True)``
        on a CPU what ``jax.jit(graph.fast_lowering(apply))`` gives, if ``manifest["bits"]`` is "exact": the same operations
        were traced for a named length as for a number. Where they were not (``positions[:time]`` for any `time` is a dynamic
        slice) XLA may fuse them otherwise, and results are those within rounding; ``save(axes={})`` keeps the bits, for one
        shape. Mapped by `jax.vmap` it runs once for each example, in a loop; give it a batch along its own batch axis instead,
        where that will do.

        Args:
          inputs: as the example inputs were, named tuples and dataclasses also as tuples and dicts; with any lengths of
            the axes that have names in `axes`.

        Raises:
          ValueError: for inputs of other structure, shape or dtype; names each.
        """
        return self._checked(self._call, self._exported, self._weights, inputs)

    def _checked(self, call: Callable[..., Any], exported: Any, weights: list[Any], inputs: tuple[Any, ...]) -> Any:
        given = plain(inputs)
        try:
            with program.running(lambda: check_inputs(exported, given, self.constraints)):
                return call(weights, *given)
        except ArtifactError as error:
            if self.constraints and "refining shapes" in str(error):
                said = "; ".join(self.constraints)
                raise ValueError(f"the inputs do not fit the program: its lengths must keep to {said}.") from error
            raise

    def account(self) -> Account:
        """Count the bytes of the file that this was read from, without reading it again."""
        return count(self._parts, list(structure.in_order(self.packed)))

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Shapes and dtypes of inputs that the program takes; named axes with some length."""
        return example_inputs(self._exported, self._manifest.get("axes", {}))

    @property
    def inputs(self) -> dict[str, str]:
        """What the program takes: ``{"0": "float32[batch,64]"}``, by the path of each array in the inputs."""
        return inputs_of(self._exported)

    @property
    def axes(self) -> tuple[dict[int, str], ...]:
        """For each array of the inputs, which axes may have any length, and their names; equal names are equally long."""
        return names_of(self._exported)

    @property
    def constraints(self) -> tuple[str, ...]:
        """What must hold of the named lengths, such as ``"time <= 512"``."""
        return tuple(map(str, self._manifest.get("constraints", ())))

    def apply(self, variables: PyTree, *inputs: Any) -> Any:
        """Run the program on other weights: the pure function that was saved, to be traced, changed and saved anew.

        It has no derivative: the program is a forward pass.

        Args:
          variables: a tree like `variables` or `packed`, any leaf of which may be packed.
          inputs: as in a call.

        Raises:
          ValueError: if `variables` or the inputs are not like the file's; names each leaf.
        """
        return self._applied(variables, inputs)

    def _applied(self, variables: PyTree, inputs: tuple[Any, ...], lowering: bool = False) -> Any:
        """`apply`; with `lowering` not to be saved anew, for the CPU's forms are then what it is."""
        try:
            leaves = list(structure.in_order(unpack(variables), self.packed))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"apply: needs variables of the file's structure, as `Artifact.variables` has; {error} is missing."
            ) from error
        exported, weights, given = self._exported, program.plain_weights(leaves), plain(inputs)

        def check() -> None:
            names = {path: path for path in paths.flatten(self.packed, is_packed)}
            in_file = structure.in_order(paths.replace(self.packed, names, is_packed), self.packed)
            program.check_weights(exported, dict(zip(in_file, weights)))
            check_inputs(exported, given, self.constraints)

        with program.running(check):
            return (self._run_fast if lowering else self._run)(weights, *given)

    def native(self) -> Callable[..., Any]:
        """Return the model on its packed leaves: they stay packed in memory, and the dense weights are never kept.

        A file that was saved with ``native=True`` has a program of its own for it, in which each operation runs on the
        packed leaf: two thin dots, a dot of integers; see `lepton_jax.native.interpreter`. Without it the leaves are decoded
        inside every call, which saves memory and no time; an `UnpackedWarning` says so. Values equal those of a plain call
        within rounding, since sums are taken in another order.

        Returns:
          ``native(*inputs)``, compiled once a batch size; the inputs are those of a plain call.
        """
        from lepton_jax.native import UnpackedWarning  # not needed to read a file

        in_file = list(structure.in_order(self.packed))
        if self._native_code:
            exported = program.deserialize(self._native_code)
            return self._bound(exported, jax.jit(program.runner(exported)), program.native_weights(in_file))
        found = [leaf for leaf in in_file if is_packed(leaf)]
        if found:
            warnings.warn(
                f"the file has no native program, so its {len(found)} packed leaves are decoded inside every call: smaller in "
                "memory, no faster. Save it with native=True to run them as they are.",
                UnpackedWarning,
                stacklevel=2,
            )

        def run(leaves: list[Any], *inputs: Any) -> Any:
            return self._run(program.plain_weights(unpack(leaves)), *inputs)

        return self._bound(self._exported, jax.jit(run), in_file)

    def _bound(self, exported: Any, call: Callable[..., Any], weights: list[Any]) -> Callable[..., Any]:
        def native(*inputs: Any) -> Any:
            return self._checked(call, exported, weights, inputs)

        return native


@checked_but("packed")
def save(
    path: str | os.PathLike[str],
    apply: Callable[..., Any],
    packed: PyTree,
    *example_inputs: PyTree,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    native: bool = False,
    axes: Axes | None = None,
    constraints: Sequence[str] = (),
) -> None:
    """Write a model as one `.lepton` file: program, weights and manifest.

    Args:
      path: the file; replaced in one step if it is there.
      apply: pure function ``apply(variables, *inputs)``.
      packed: the whole variables, any leaf of which may be packed.
      example_inputs: arrays (or trees of them) of the inputs' shapes and dtypes.
      recipe: how the model was made, for the manifest; JSON.
      metrics: what it reached, for the manifest; JSON.
      native: store a second program, which runs on the packed leaves as they are, for `Artifact.native`; a few kilobytes.
        An `UnpackedWarning` names the leaves that it has to unpack.
      axes: which axes of the inputs may have any length, and how these are called: ``{0: "batch", 1: "time"}``, of every array
        that has them, or one such mapping for each array. All others keep their lengths. None: leading axes may, those of
        equal length here together, as one batch; where the model cannot be traced so, a `FixedBatchWarning` says it.
      constraints: what holds of the named lengths, as `jax.export.symbolic_shape` has it: ``("time <= 512",)``.

    Raises:
      ArtifactError: if a leaf cannot be stored, `apply` cannot be exported or the file cannot be written; a file of that name
        is then as it was.
      ValueError: for axes that the inputs do not have.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> folder = tempfile.TemporaryDirectory()
      >>> save(f"{folder.name}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      >>> load(f"{folder.name}/m.lepton")(jnp.array([[3.0, 4.0]])).tolist()
      [[3.0, 4.0]]
      >>> folder.cleanup()
    """
    origin = getattr(apply, "__self__", None)
    if axes is None and isinstance(origin, Artifact):
        axes, constraints = origin.axes, origin.constraints
    tree, streams = encode_tree(packed)
    head: dict[str, Any] = {"tree": tree}
    found = program.export_program(apply, packed, example_inputs, axes, constraints)
    code = program.serialize(found.exported)
    facts = (("batch", "" if found.symbolic else "static"), ("bits", "" if found.exact else "rounding"))
    head |= {name: value for name, value in (*facts, ("axes", found.lengths), ("constraints", list(constraints))) if value}
    if native:
        head["native"] = len(code)  # where it begins; beside the first, since the two have much in common
        code += program.serialize(program.export_native(apply, packed, example_inputs, axes, constraints).exported)
    head |= {name: value for name, value in (("recipe", recipe), ("metrics", metrics)) if value}
    head["jax"] = jax.__version__
    data = _built(head, bytes(code), streams)
    turns = _checked(data, os.fspath(path))
    if turns > most_turns(len(data)):
        head["tree"], streams = encode_tree(packed, quick=True)
        data = _built(head, bytes(code), streams)
        _checked(data, os.fspath(path))
    container.write_atomic(path, data)


def _built(head: dict[str, Any], code: bytes, tensors: bytes) -> bytes:
    try:
        manifest = json.dumps(head, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"recipe and metrics must be JSON: {error}") from error
    return container.build(manifest, code, tensors)


def _checked(data: bytes, name: str) -> int:
    """Read a file that is about to be written as `load` will, and return the turns of slow loops that it takes."""
    allowance = Allowance(len(data), _ALL_BYTES)
    try:
        _opened(data, name, allowance, progress=False)
    except ArtifactError as error:
        raise ArtifactError(f"cannot save, since it could not be loaded: {error}") from error
    return allowance.turns


@checked
def load(
    path: str | os.PathLike[str], *, max_bytes: int | None = None, progress: bool = False, lowering: bool = False
) -> Artifact:
    """Read a `.lepton` file. Needs neither the model's code nor pickle.

    Args:
      path: the file.
      max_bytes: refuse a file whose dense weights would take more; None: 16 MiB, or 2048 times the file's size if that is more.
      progress: show a bar while tensors are decoded, if the error stream is a terminal.
      lowering: when it is called on a CPU, compute what XLA is slow at there in other forms, by
        `lepton_jax.graph.fast_lowering`, within rounding, as `lepton_jax.load_model` does by default; a program without such
        operations runs as it is. The file itself holds the program as it was written, for every platform and engine. False
        keeps the bits of ``jax.jit(apply)``.

    Raises:
      ArtifactError: for a foreign, newer, truncated or damaged file; says what and where.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/m.lepton", lambda v, x: x @ v["w"], {"w": jnp.eye(2)}, jnp.ones((1, 2)))
      ...     model = load(f"{folder}/m.lepton")
      >>> model(jnp.array([[3.0, 4.0]])).tolist(), model.variables["w"].tolist(), model.manifest["batch"]
      ([[3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]], 'symbolic')
    """
    if max_bytes is not None:
        check_whole("load: max_bytes", max_bytes, 0)
    data = container.read(path)
    artifact = _opened(data, os.fspath(path), Allowance(len(data), max_bytes), progress)
    artifact.lowering = lowering
    return artifact


def _opened(data: bytes, name: str, allowance: Allowance, progress: bool) -> Artifact:
    parsed = container.parse(data, name)
    manifest = read_manifest(parsed, name)
    described = read_tensors(parsed, manifest, name, allowance, progress)
    try:
        tree = structure.rebuild(manifest["tree"], iter([leaf for _, _, leaf, _ in described]))
    except ArtifactError as error:
        raise ArtifactError(f"{name}: the manifest: {error}") from error
    parts = parts_of(parsed, described)
    tensors = {
        path: {"kind": spec.kind_name, "shape": list(spec.shape), "dtype": spec.dtype, "bytes": used, "coders": list(coders)}
        for path, spec, used, coders in parts.tensors
    }
    full = {"batch": "symbolic", "bits": "exact", **manifest, "version": list(parsed.version), "tensors": tensors}
    code, begin = parsed.sections["program"].data, manifest.get("native")
    if begin is None:
        return Artifact(tree, full, code, parts)
    if type(begin) is not int or not 0 < begin < len(code):
        raise ArtifactError(f"{name}: a native program at {begin!r} of the programs' {len(code)} bytes")
    return Artifact(tree, full, code[:begin], parts, code[begin:])
