"""A folder with a model and an example in each language that runs it."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lepton_jax.core.arguments import checked_but
from lepton_jax.core.errors import check_option
from lepton_jax.core.extras import import_extra
from lepton_jax.core.files import write_atomic, write_text
from lepton_jax.deploy import litert
from lepton_jax.deploy.models import deployable
from lepton_jax.deploy.place import has_example, place
from lepton_jax.deploy.save import save

To = Literal["onnx", "litert", "html"]
_EXAMPLES = {
    "onnx": ("run.py", "run.cpp", "Run.java", "run.mjs", "package.json", "README.md"),
    "litert": ("run_litert.py",),
    "html": ("index.html", "package.json", "README.md"),
}


class Kind(NamedTuple):
    """What a type of elements is called in each language; and its number in ONNX."""

    number: int
    cpp: str
    java: str
    node: str
    array: str


_KINDS = {
    "float32": Kind(1, "float", "JAVA_FLOAT", "float32", "Float32Array"),
    "uint8": Kind(2, "uint8_t", "JAVA_BYTE", "uint8", "Uint8Array"),
    "int8": Kind(3, "int8_t", "JAVA_BYTE", "int8", "Int8Array"),
    "int32": Kind(6, "int32_t", "JAVA_INT", "int32", "Int32Array"),
    "int64": Kind(7, "int64_t", "JAVA_LONG", "int64", "BigInt64Array"),
    "bool": Kind(9, "uint8_t", "JAVA_BYTE", "bool", "Uint8Array"),
    "float64": Kind(11, "double", "JAVA_DOUBLE", "float64", "Float64Array"),
}


@checked_but("model")
def write_folder(
    model: Any,
    folder: str | os.PathLike[str],
    to: To = "onnx",
    *,
    batches: Sequence[Any] = (),
    title: str = "A deployed model",
    labels: Sequence[str] = (),
    vocabulary: Mapping[str, int] | None = None,
) -> tuple[str, ...]:
    """Write a model and examples that run it: in Python, C++, Java and Node, as a LiteRT file, or as a web page.

    Every example reads ``input_0.bin``, which is there too, and prints the numbers of ``output_0``. The page takes an image
    that is dropped or drawn (pixels from 0 to 1: a model that wants other numbers scales them itself), a sentence, or numbers;
    of tokens ``[B, L, V]`` it shows what follows the last one.

    Args:
      model: a `lepton_jax.Model`, or a loaded `.lepton` file.
      folder: made if it is not there; files of these names in it are replaced. Nothing is written if the model cannot be.
      to: "onnx", "litert" or "html".
      batches: to calibrate on, as for `place`: then ``model.onnx`` is in eight bits, and ``float.onnx`` beside it; of LiteRT
        ``.tflite``.
      title: of the page.
      labels: what the page calls each class; by default its number.
      vocabulary: the number of each word of the sentences that the page takes, other words are 1; or of each character, if all
        are of one, others are left out. None: tokens are bytes.

    Returns:
      the names of the files.

    Raises:
      As `save` and `place`; ValueError: for a vocabulary that has no words, or numbers below 0.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from lepton_jax import Model
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_folder(Model(lambda v, x: x @ v, jnp.eye(2), (jnp.ones((1, 2)),)), folder)
      ('model.onnx', 'input_0.bin', 'run.py', 'run.cpp', 'Run.java', 'run.mjs', 'package.json', 'README.md')
    """
    check_option("write_folder: to", to, To)
    if vocabulary is not None and (not vocabulary or min(vocabulary.values()) < 0):
        least = min(vocabulary.values(), default="none")
        raise ValueError(f"write_folder: vocabulary must give words numbers from 0 on; the least is {least}.")
    suffix = ".tflite" if to == "litert" else ".onnx"
    if to != "litert":
        import_extra("onnx", "deploy")
    target = Path(folder)
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    names = [f"model{suffix}"]
    try:
        if batches:
            place(model, batches, "litert" if to == "litert" else "onnxruntime").save(target / names[0])
            save(model, target / f"float{suffix}")
            names.append(f"float{suffix}")
        else:
            save(model, target / names[0])
        ports, output = _ports(target / names[0], model, batches)
        inputs = _inputs(ports)
    except BaseException:
        if made and not any(target.iterdir()):
            target.rmdir()
        raise
    for name, array in inputs.items():
        write_atomic(target / f"{name}.bin", array.tobytes())
        names.append(f"{name}.bin")
    filled = _words(inputs, output, title, {Path(name).stem: name for name in names if name.endswith(suffix)})
    filled |= {"WEB_LABELS": _script(list(labels)), "WEB_VOCABULARY": _script(vocabulary and dict(vocabulary))}
    for name in _EXAMPLES[to]:
        text = files("lepton_jax.deploy").joinpath("examples", f"{name}.txt").read_text()
        write_text(target / name, re.sub("@([A-Z_]+)@", lambda word: filled[word[1]], text))
        names.append(name)
    return tuple(names)


def _kind(name: str, dtype: Any) -> Kind:
    kind = _KINDS.get(np.dtype(dtype).name)
    if kind is None:
        known, got = ", ".join(_KINDS), np.dtype(dtype).name
        raise ValueError(f"write_folder: examples have {known}; {name} is {got}. Convert it in the model.")
    return kind


Ports = dict[str, tuple[list[int], Any]]


def _ports(file: Path, model: Any, batches: Sequence[Any]) -> tuple[Ports, Kind]:
    """Shapes and dtypes of a file's inputs, for one example, other named axes as long as in the model's own; and its output."""
    if file.suffix == ".tflite":
        found = litert.ports(file, name="write_folder")
        return {f"input_{number}": (list(shape), dtype) for number, (shape, dtype) in enumerate(found)}, _KINDS["float32"]
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    first = tuple(batches[:1][0] if batches and isinstance(batches[0], tuple) else batches[:1])
    example = jax.tree.leaves(deployable("write_folder", model, () if has_example(model) else first).example)
    lengths: dict[str, int] = {}
    ports: Ports = {}
    for value, leaf in zip(graph.input, example, strict=True):
        tensor = value.type.tensor_type
        shape = []
        for axis, dim in enumerate(tensor.shape.dim):
            known = dim.dim_value if dim.HasField("dim_value") else 0
            shape.append(known or lengths.setdefault(dim.dim_param, np.shape(leaf)[axis] if axis else 1))
        ports[value.name] = shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return ports, _kind("output_0", onnx.helper.tensor_dtype_to_np_dtype(graph.output[0].type.tensor_type.elem_type))


def _inputs(ports: Ports) -> dict[str, np.ndarray]:
    """Numbers for each input."""
    random = np.random.default_rng(0)
    found = {}
    for name, (shape, dtype) in ports.items():
        _kind(name, dtype)
        floating = np.issubdtype(dtype, np.floating)
        # Of whole numbers 0 and 1: whatever they index, these are there.
        found[name] = (random.normal(size=shape) if floating else random.integers(0, 2, shape)).astype(dtype)
    return found


def _script(value: Any) -> str:
    """A value as a script within a page has it."""
    return json.dumps(value).replace("<", "\\u003c")


def _words(inputs: dict[str, np.ndarray], output: Kind, title: str, models: dict[str, str]) -> dict[str, str]:
    """What stands in the examples for this model."""
    kinds = {name: _kind(name, array.dtype) for name, array in inputs.items()}

    def each(line: Any, between: str = ", ") -> str:
        return between.join(line(name, array, kinds[name]) for name, array in inputs.items())

    def dims(array: np.ndarray) -> str:
        return ", ".join(map(str, array.shape))

    first = next(iter(inputs.values()))
    is_image = first.ndim == 4 and first.shape[-1] in (1, 3) and first.dtype == np.float32
    kind = "image" if is_image else "text" if first.dtype.kind == "i" else "numbers"
    page = {"kind": kind, "type": next(iter(kinds.values())).node, "shape": list(first.shape)}
    return {
        "TITLE": html.escape(title),
        "TAKES": each(lambda name, array, kind: f"`{name}`, {array.dtype.name}[{dims(array)}]"),
        "PYTHON_INPUTS": each(lambda name, array, kind: f'"{name}": ("{array.dtype.name}", {array.shape})'),
        "CPP_INPUTS": each(lambda n, a, k: f'{{"{n}", "{n}.bin", {k.number}, {{{dims(a)}}}, {a.nbytes}}}'),
        "CPP_TYPE": output.cpp,
        "JAVA_INPUTS": each(lambda n, a, k: f'new Input("{n}", {k.number}, new long[] {{{dims(a)}}})'),
        "JAVA_TYPE": output.java,
        "NODE_INPUTS": each(lambda n, a, k: f'{n}: {{ type: "{k.node}", array: {k.array}, shape: [{dims(a)}] }}'),
        "WEB_INPUT": _script(page),
        "WEB_FILES": _script(models),
    }
