"""A language model in few bits by several methods, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from lepton_jax.artifact import tensor_bytes
from lepton_jax.core import paths
from lepton_jax.core.arguments import checked_but
from lepton_jax.core.tables import table
from lepton_jax.core.typing import PyTree, Select
from lepton_jax.formats import Format
from lepton_jax.graph.roles import roles
from lepton_jax.pruning import sparsegpt_prune
from lepton_jax.quantization import Gptq, Nearest, awq_scale, quantize_layers
from lepton_jax.simple import Model
from lepton_jax.training import next_token_entropy

FLOAT = "float"


@dataclass(frozen=True)
class QuantizedModel:
    """A row of `LanguageModels`.

    Attributes:
      model: with packed leaves, or with zeros.
      perplexity: of a token.
      seconds: that the method took, compilation included.
      bytes: of all tensors in a `.lepton` file.

    Example:
      >>> QuantizedModel(Model(lambda v, x: x, {}), perplexity=5.0, seconds=1.0, bytes=100).perplexity
      5.0
    """

    model: Model
    perplexity: float
    seconds: float
    bytes: int


class LanguageModels(dict[str, QuantizedModel]):
    """What `quantize_lm` made, by method; printed, a table.

    Example:
      >>> model = Model(lambda v, x: x, {})
      >>> found = LanguageModels(
      ...     {"float": QuantizedModel(model, 5.0, 0.0, 400), "nearest": QuantizedModel(model, 5.5, 1.2, 80)}
      ... )
      >>> print(found)
      method   perplexity  lost %  bytes  smaller  seconds
      float         5.000    0.00    400     1.0x      0.0
      nearest       5.500   10.00     80     5.0x      1.2
    """

    def __str__(self) -> str:
        whole = self[FLOAT]
        rows: list[tuple[Any, ...]] = [("method", "perplexity", "lost %", "bytes", "smaller", "seconds")]
        for name, one in self.items():
            lost, smaller = 100 * (one.perplexity / whole.perplexity - 1), whole.bytes / one.bytes
            rows.append(
                (name, f"{one.perplexity:.3f}", f"{lost:.2f}", f"{one.bytes:,}", f"{smaller:.1f}x", f"{one.seconds:.1f}")
            )
        return table(rows)


@checked_but("model")
def quantize_lm(
    model: Model,
    calibration: Iterable[Any],
    rows: Any,
    *,
    format: Format | int | str = "int4_g32",
    select: Select | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> LanguageModels:
    """Quantize a decoder to nearest, by AWQ and by GPTQ, prune it by SparseGPT, and compare perplexities, bytes and time.

    "nearest" needs no inputs. "AWQ" scales inputs that layers share and then rounds to nearest; "GPTQ" rounds layer by layer,
    each on what the quantized layers before it give. "SparseGPT 2:4" keeps two of every four consecutive weights, in float;
    "SparseGPT 2:4, few bits" rounds those to nearest, in the format. Layers of a scan, grouped heads and tied embeddings
    are as any.

    Args:
      model: ``apply(variables, tokens[B, L]) -> logits[B, L, vocabulary]`` and its variables, arrays.
      calibration: batches of tokens ``[B, L]``, all of one shape.
      rows: integers ``[N, L + 1]`` that the perplexity is measured on, from `lepton_jax.training.windows`; validation data, if
        a method is to be chosen by them.
      format: of the weights, as for `quantize_layers`.
      select: which weights; by default those of all dots but of tables that tokens are looked up in, which stay as they are.
      batch_size: rows a call.
      progress: show a bar for each method.

    Returns:
      rows by method, of which each has a `Model`; printed, a table.

    Raises:
      ValueError: if no batch is given, or as `quantize_layers` and `sparsegpt_prune` do.

    Example:
      >>> import jax.numpy as jnp
      >>> from lepton_jax.recipes import quantize_lm
      >>> v = {"table": jnp.eye(8), "w": jax.random.normal(jax.random.key(0), (8, 8))}
      >>> model = Model(lambda v, tokens: v["table"][tokens] @ v["w"], v)
      >>> tokens = jnp.arange(9)[None] % 8
      >>> found = quantize_lm(model, [tokens[:, :-1]], tokens, format=4, progress=False)
      >>> list(found)
      ['float', 'nearest', 'AWQ', 'GPTQ', 'SparseGPT 2:4', 'SparseGPT 2:4, few bits']
      >>> float((found["SparseGPT 2:4"].model.variables["w"] == 0).mean())
      0.5

    Source: Frantar et al. 2023, "GPTQ"; Lin et al. 2024, "AWQ"; Frantar and Alistarh 2023, "SparseGPT".
    """
    batches = list(calibration)
    if not batches:
        raise ValueError("quantize_lm: calibration needs at least one batch of tokens [B, L]; got none.")
    apply, variables = model.apply, model.variables
    chosen = _weights(apply, variables, batches[0]) if select is None else select

    def rounded(variables: PyTree, method: Any = Nearest(), **options: Any) -> PyTree:
        return quantize_layers(apply, variables, batches, format, method, select=chosen, progress=progress, **options)[0]

    def pruned() -> PyTree:
        return sparsegpt_prune(apply, variables, batches, (2, 4), select=chosen, progress=progress)[0]

    ways: Mapping[str, Callable[[], PyTree]] = {
        FLOAT: lambda: variables,
        "nearest": lambda: rounded(variables, sequential=False),
        "AWQ": lambda: rounded(awq_scale(apply, variables, batches, format, select=chosen)[0]),
        "GPTQ": lambda: rounded(variables, Gptq()),
        "SparseGPT 2:4": pruned,
    }
    found = LanguageModels()
    for name, way in ways.items():
        found[name] = _measured(model, way, rows, batch_size)
    sparse = found["SparseGPT 2:4"]
    both = _measured(model, lambda: rounded(sparse.model.variables, sequential=False), rows, batch_size, sparse.seconds)
    found["SparseGPT 2:4, few bits"] = both
    return found


def _weights(apply: Callable[..., Any], variables: PyTree, tokens: Any) -> tuple[str, ...]:
    """The weights that nothing is looked up in."""
    taken = roles(apply, variables, tokens)
    found = tuple(path for path, role in taken.items() if role.kind == "weight" and "gather" not in role.read_by)
    if not found:
        raise ValueError(f"quantize_lm: the function has no weight of a dot among {', '.join(paths.flatten(variables))}.")
    return found


def _measured(model: Model, way: Callable[[], PyTree], rows: Any, batch_size: int, before: float = 0.0) -> QuantizedModel:
    began = time.perf_counter()
    made = Model(model.apply, jax.block_until_ready(way()), model.example, model.applied)
    seconds = before + time.perf_counter() - began
    entropy = next_token_entropy(made.apply, made.dense, rows, batch_size=batch_size)
    return QuantizedModel(made, math.exp(entropy), seconds, tensor_bytes(made.variables))
