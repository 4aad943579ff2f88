"""Pages of committed files: the notebooks with their outputs, and every study's table and pictures."""

import ast
import base64
import functools
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
NOTEBOOKS = ROOT / "experiments" / "notebooks"
REPORTS = ("report.md", "seeds.md")
BADGE = re.compile(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)\n*")
"""A picture from elsewhere that is a link."""
STUDIES = {
    "Deep compression": {
        "Digits": "deep_compression_digits",
        "Digits, stages left out": "deep_compression_digits_sweep",
        "MNIST, LeNet-300-100": "deep_compression_mnist_lenet300",
        "LeNet-300-100, stages left out": "deep_compression_mnist_lenet300_sweep",
        "MNIST, LeNet-5": "deep_compression_mnist_lenet5",
        "LeNet-5, stages left out": "deep_compression_mnist_lenet5_sweep",
        "Techniques in pairs": "combined",
        "Tuned layer by layer": "tuning_lenet300",
        "Tuned layer by layer, LeNet-5": "tuning_lenet5",
        "Tuned layer by layer, ResNet-20": "tuning_resnet20",
        "Tuned layer by layer, film reviews": "tuning_sst2",
        "Tuned layer by layer, characters": "tuning_characters",
    },
    "Sparse": {
        "Gradual pruning, LeNet-300-100": "gradual_pruning",
        "Gradual pruning, LeNet-5": "gradual_pruning_lenet5",
        "Sparse training": "sparse_training",
        "Lottery tickets": "lottery_ticket",
        "Pruned before training": "prune_at_init",
        "Filters of ResNet-20": "filter_pruning",
        "Pruning: time": "pruning_speed",
        "Channels: time": "channel_speed",
        "Channels: time on ONNX Runtime": "channel_rounding",
    },
    "Few bits, low rank": {
        "Trained, LeNet-5": "qat_bits",
        "Trained, convolutions": "qat_bits_cnn",
        "Trained, ResNet-20": "qat_bits_resnet20",
        "After training, ResNet-20": "ptq_methods",
        "After training, convolutions": "ptq_methods_fashion_mnist",
        "After training, a transformer": "lm_ptq",
        "Layer by layer: time": "layer_by_layer",
        "Size in the loss, LeNet-5": "entropy_training_lenet5",
        "Size in the loss, LeNet-300-100": "entropy_training_lenet300",
        "Low rank": "low_rank",
        "Low rank: time": "low_rank_dense",
        "Bytes of formats": "quantized_size",
        "Inference in int8": "int8_inference",
        "Networks in int8": "native_int8",
        "Training in int8": "int8_training",
    },
    "Learning, precision": {
        "Distillation, Fashion-MNIST": "distillation_fashion_mnist",
        "Distillation, MNIST": "distillation_mnist",
        "Half precision, images": "mixed_precision_fashion_mnist",
        "Half precision, characters": "mixed_precision_characters",
        "Half precision: memory, time": "mixed_precision",
        "A quantum layer": "quantum",
    },
    "Applications": {
        "Images of clothes": "applications_images",
        "Chest X-rays": "applications_medical_images",
        "Spoken digits": "applications_spoken_digits",
        "Film reviews": "applications_sentiment",
        "Intents of bank customers": "applications_intents",
        "Financial news": "applications_financial_news",
        "Time series": "applications_monitoring",
        "Images and text": "applications_image_and_text",
        "Images and sounds": "applications_image_and_sound",
    },
    "Engines, files": {
        "ONNX Runtime": "deployment",
        "Three engines and XLA": "deployment_engines",
        "Fast lowering": "fast_lowering",
        "Rewriting a graph": "graph",
        "Optimised graphs": "graph_optimisation",
        "Units, and the edge": "single_point",
        "The file's coders": "artifact",
        "The program's bytes": "program_bytes",
        "Files of others": "foreign_models",
        "Compressed data sets": "compressed_data",
        "Hostile files": "hostile_files",
        "Accidents": "accidents",
        "A killed search": "search_resume",
        "The time of a table": "tuning_table",
        "Devices and processes": "scaling",
        "Masks in every layout": "placements",
        "Compressed gradients": "gradient_compression",
        "Bytes of a training state": "state_bytes",
        "A killed process": "kills",
    },
}
"""What each committed result is called in the navigation; one that is not named here stands at the end by its file's name."""


def notebooks() -> list[dict[str, str]]:
    """The pages of the notebooks, by their titles."""
    found = {path: text for path, text in pages().items() if path.startswith("notebooks/") and isinstance(text, str)}
    return [{re.search(r"^# (.+)$", text, re.MULTILINE).group(1): path} for path, text in found.items()]


def studies() -> list[dict[str, list[dict[str, str]]]]:
    """The pages of the studies that are there, in their groups."""
    there = pages()
    named = {group: {label: f"studies/{name}.md" for label, name in rows.items()} for group, rows in STUDIES.items()}
    known = {path for rows in named.values() for path in rows.values()}
    named["More"] = {
        Path(path).stem.replace("_", " ").capitalize(): path
        for path, text in there.items()
        if path.startswith("studies/") and isinstance(text, str) and path not in known
    }
    shown = {group: [{label: path} for label, path in rows.items() if path in there] for group, rows in named.items()}
    return [{group: rows} for group, rows in shown.items() if rows]


@functools.cache
def pages() -> dict[str, str | bytes]:
    """Each page's Markdown, and each picture, by its path."""
    found: dict[str, str | bytes] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        found |= _notebook(path)
    for path in sorted(RESULTS.iterdir()):
        found |= _study(path) if path.is_dir() else {f"studies/{path.name}": _titled(path)}
    return found


def _titled(path: Path) -> str:
    """A benchmark's page; its name is its title where it has none."""
    text = path.read_text()
    return text if text.startswith("# ") else f"# {path.stem.replace('_', ' ').capitalize()}\n\n{text}"


def _study(folder: Path) -> dict[str, str | bytes]:
    """The committed summary under a readable title, and what the config says of source, command and time."""
    report = next(folder / name for name in REPORTS if (folder / name).exists()).read_text()
    _, _, rest = report.partition("\n")
    config = ROOT / "configs" / f"{folder.name.removesuffix('_sweep')}.py"
    said = (ast.get_docstring(ast.parse(config.read_text())) or "") if config.exists() else ""
    first, _, more = said.partition("\n")
    title = first.rstrip(".") or folder.name.replace("_", " ")
    if folder.name.endswith("_sweep"):
        title, more = f"{title}: its stages left out", ""
    text = f"# {title}\n{rest.rstrip()}\n"
    if not re.search(r"!\[", rest):
        pictures = sorted(path.name for path in folder.glob("*.png"))
        text += "".join(f"\n![{name.removesuffix('.png')}]({name})\n" for name in pictures)
    if more.strip():
        text += f"\n## What the config says\n\n`configs/{config.name}`\n\n{_paragraphs(more)}\n"
    text = re.sub(r"\]\(([\w-]+\.(?:png|svg))\)", rf"]({folder.name}/\1)", text)
    pictures = {f"studies/{folder.name}/{path.name}": path.read_bytes() for path in folder.glob("*.png")}
    return {f"studies/{folder.name}.md": text, **pictures}


def _paragraphs(text: str) -> str:
    """``Source: ...`` and the like in bold, each a paragraph of its own."""
    return re.sub(r"^(\w+(?: \w+)?): ", r"\n**\1.** ", text.strip(), flags=re.MULTILINE)


def _notebook(path: Path) -> dict[str, str | bytes]:
    """Markdown as it is, code in fences, outputs below it."""
    lines: list[str] = []
    pictures: dict[str, str | bytes] = {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [BADGE.sub("", source), ""]
            continue
        lines += [f"```python\n{source}\n```", ""]
        for output in cell["outputs"]:
            data: dict[str, Any] = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[f"notebooks/{name}"] = base64.b64decode("".join(data["image/png"]))
                lines += [f"![a plot]({name})", ""]
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                lines += [f"```text\n{text}\n```", ""]
    return {f"notebooks/{path.stem}.md": "\n".join(lines), **pictures}
