"""Folders of published decoders, written here, and what such a decoder computes, in NumPy and float64 from the formulas."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
CONFIGS = {
    "llama": {"model_type": "llama"},
    "llama biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama tied, one key head": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "head_dim": 6,
    },
    "llama linear": {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama dynamic": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
        "max_position_embeddings": 7,
    },
    "llama 3": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen2 yarn": {
        "model_type": "qwen2",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 4,
        },
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 10, "tie_word_embeddings": True},
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gemma": {"model_type": "gemma", "head_dim": 8, "hidden_act": "gelu"},
}


def config_of(name: str) -> dict:
    return {**SIZES, **CONFIGS[name]}


def sizes_of(config: dict) -> tuple[int, int, int]:
    """Heads, heads of keys, and their width."""
    heads = config["num_attention_heads"]
    return heads, config["num_key_value_heads"], config.get("head_dim", config["hidden_size"] // heads)


def is_tied(config: dict) -> bool:
    return config.get("tie_word_embeddings", config["model_type"] == "gemma")


def tensors_of(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the published names."""
    rng = np.random.default_rng(seed)
    width, mlp = config["hidden_size"], config["intermediate_size"]
    heads, groups, size = sizes_of(config)
    kind, around = config["model_type"], 0.0 if config["model_type"] == "gemma" else 1.0
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not is_tied(config):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        rows = {"self_attn.q_proj": (heads * size, width), "self_attn.k_proj": (groups * size, width)}
        rows |= {"self_attn.v_proj": (groups * size, width), "self_attn.o_proj": (width, heads * size)}
        rows |= {"mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width), "mlp.down_proj": (width, mlp)}
        for name, shape in rows.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
            asked = config.get("attention_bias" if "attn" in name else "mlp_bias", False)
            if asked or (kind == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj")):
                shapes[f"model.layers.{layer}.{name}.bias"] = shape[:1]
        names = ["input_layernorm", "post_attention_layernorm"]
        shapes |= {f"model.layers.{layer}.{name}.weight": (width,) for name in names}
        if kind == "qwen3":
            shapes |= {f"model.layers.{layer}.self_attn.{name}.weight": (size,) for name in ("q_norm", "k_norm")}
    return {
        name: (rng.standard_normal(shape) * 0.3 + (around if "norm" in name else 0)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, config: dict, tensors: dict[str, np.ndarray], files: int = 1) -> Path:
    """Write config.json and the tensors, in one file or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    where = {name: f"model-{number % files + 1:05}-of-{files:05}.safetensors" for number, name in enumerate(tensors)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def angles(config: dict, length: int) -> tuple[np.ndarray, float]:
    """Angles ``[length, d/2]`` of a text's positions, pair by pair, and what turned values are multiplied by."""
    size = sizes_of(config)[2]
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind, theta = given.get("rope_type", given.get("type")), given.get("rope_theta", config.get("rope_theta", 10_000.0))
    factor, first = given.get("factor"), given.get("original_max_position_embeddings")
    longest, magnitude, rates = config["max_position_embeddings"], 1.0, []
    if kind == "dynamic" and length > longest:
        theta *= (factor * length / longest - (factor - 1)) ** (size / (size - 2))
    for pair in range(size // 2):
        rate = theta ** (-2 * pair / size)
        if kind == "linear":
            rate /= factor
        if kind == "llama3":
            wave = 2 * math.pi / rate
            if wave > first / given["low_freq_factor"]:
                rate /= factor
            elif wave >= first / given["high_freq_factor"]:
                low, high = given["low_freq_factor"], given["high_freq_factor"]
                smooth = (first / wave - low) / (high - low)
                rate = (1 - smooth) * rate / factor + smooth * rate
        if kind == "yarn":
            ends = [size * math.log(first / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in (given["beta_fast"], 1)]
            low, high = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), size - 1)
            share = min(max((pair - low) / (high - low), 0), 1)
            rate = rate * (1 - share) + rate / factor * share
            magnitude = 0.1 * math.log(factor) + 1
        rates.append(rate)
    return np.outer(np.arange(length), rates), magnitude


def window_of(config: dict, layer: int) -> int | None:
    if config["model_type"] == "mistral":
        return config["sliding_window"]
    return config["sliding_window"] if config.get("use_sliding_window") and layer >= config["max_window_layers"] else None


def logits_of(config: dict, tensors: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Logits ``[L, vocabulary]`` of one text, head by head and position by position."""
    t = {name: array.astype(np.float64) for name, array in tensors.items()}
    gemma, (heads, groups, size) = config["model_type"] == "gemma", sizes_of(config)
    turns, magnitude = angles(config, len(tokens))

    def norm(x, name):
        scale = t[f"{name}.weight"] + (1 if gemma else 0)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["rms_norm_eps"]) * scale

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    def turned(x):
        z = (x[:, : size // 2] + 1j * x[:, size // 2 :]) * np.exp(1j * turns) * magnitude
        return np.concatenate([z.real, z.imag], axis=-1)

    def act(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) if gemma else x / (1 + np.exp(-x))

    x = t["model.embed_tokens.weight"][tokens] * (math.sqrt(config["hidden_size"]) if gemma else 1)
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        y, mixed = norm(x, f"{name}input_layernorm"), []
        for head in range(heads):
            own, shared = slice(head * size, (head + 1) * size), head * groups // heads
            shared = slice(shared * size, (shared + 1) * size)
            q = linear(y, f"{name}self_attn.q_proj")[:, own]
            k, v = (linear(y, f"{name}self_attn.{part}_proj")[:, shared] for part in "kv")
            if config["model_type"] == "qwen3":
                q, k = norm(q, f"{name}self_attn.q_norm"), norm(k, f"{name}self_attn.k_norm")
            q, k, rows = turned(q), turned(k), []
            for i in range(len(tokens)):
                window = window_of(config, layer)
                first = 0 if window is None else max(0, i - window + 1)
                weights = np.exp(k[first : i + 1] @ q[i] / math.sqrt(size))
                rows.append(weights @ v[first : i + 1] / weights.sum())
            mixed.append(np.stack(rows))
        x = x + linear(np.concatenate(mixed, axis=-1), f"{name}self_attn.o_proj")
        y = norm(x, f"{name}post_attention_layernorm")
        x = x + linear(act(linear(y, f"{name}mlp.gate_proj")) * linear(y, f"{name}mlp.up_proj"), f"{name}mlp.down_proj")
    head = t["model.embed_tokens.weight" if is_tied(config) else "lm_head.weight"]
    return norm(x, "model.norm") @ head.T
