"""Published decoders: logits and decoding after a cache against NumPy in float64, and against their own library."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_folders import CONFIGS, config_of, logits_of, tensors_of, write_folder

import lepton_jax as lepton
from lepton_jax.interchange import from_pretrained
from lepton_jax.models import generate

LENGTH, PROMPT = 11, 5


def texts(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 23, (2, LENGTH)).astype(np.int32)


def made(folder: Path, name: str, files: int = 1, **options):
    config = config_of(name)
    tensors = tensors_of(config)
    return config, tensors, from_pretrained(write_folder(folder, config, tensors, files), **options)


def decoded(model: lepton.Model, tokens: np.ndarray) -> np.ndarray:
    """Logits of a prompt at once, then token by token."""
    step = jax.jit(model.apply, static_argnums=3)
    logits, cache = step(model.variables, tokens[:, :PROMPT], None, LENGTH)
    parts = [logits]
    for i in range(PROMPT, LENGTH):
        logits, cache = step(model.variables, tokens[:, i : i + 1], cache, None)
        parts.append(logits)
    assert int(cache.length) == LENGTH
    return np.concatenate(parts, axis=1)


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    np.testing.assert_array_less(np.abs(got - wanted).max() / np.abs(wanted).max(), 2e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_decoding_are_the_reference(tmp_path: Path, name: str):
    config, tensors, model = made(tmp_path, name, files=1 if name == "llama" else 3)
    tokens = texts()
    wanted = np.stack([logits_of(config, tensors, row) for row in tokens])
    close(np.asarray(model(tokens)), wanted)
    got = decoded(model, tokens)
    if name != "llama dynamic":
        close(got, wanted)
        return
    # Its base grows with the text; keys in the cache stay turned as they were when the text was shorter.
    prompt = np.stack([logits_of(config, tensors, row[:PROMPT]) for row in tokens])
    close(got[:, :PROMPT], prompt)


@pytest.mark.parametrize("name", ["llama biases", "qwen2", "qwen3", "gemma"])
def test_a_scanned_twin_is_equal(tmp_path: Path, name: str):
    _, _, model = made(tmp_path, name, files=2)
    scanned = from_pretrained(tmp_path, scan=True)
    tokens = texts()
    close(np.asarray(scanned(tokens)), np.asarray(model(tokens)))
    close(decoded(scanned, tokens), np.asarray(model(tokens)))
    stacked = scanned.variables["params"]["blocks"]["query"]["kernel"]
    for layer in range(2):
        own = model.variables["params"][f"Block_{layer}"]["query"]["kernel"]
        np.testing.assert_array_equal(stacked[layer], own)
    assert stacked.dtype == jnp.float32


def test_a_cache_that_is_full_says_so(tmp_path: Path):
    _, _, model = made(tmp_path, "llama")
    tokens, step = texts(), jax.jit(model.apply, static_argnums=3)
    logits, cache = step(model.variables, tokens[:, :1], None, 2)
    assert np.isfinite(logits).all()
    logits, cache = step(model.variables, tokens[:, 1:2], cache, None)
    assert np.isfinite(logits).all()
    logits, _ = step(model.variables, tokens[:, 2:3], cache, None)
    assert np.isnan(logits).all()


@pytest.mark.parametrize("scan", [False, True])
def test_generated_text_is_the_most_likely(tmp_path: Path, scan: bool):
    config, tensors, model = made(tmp_path, "mistral", scan=scan)
    tokens = texts()[:1, :PROMPT]
    text = tokens[0]
    for _ in range(6):
        text = np.append(text, logits_of(config, tensors, text)[-1].argmax())
    got = generate(model.apply, model.variables, jnp.asarray(tokens), 6)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got[0], text[PROMPT:])
    drawn = [generate(model.apply, model.variables, jnp.asarray(tokens), 6, key=jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    cold = generate(model.apply, model.variables, jnp.asarray(tokens), 6, key=jax.random.key(2), temperature=1e-4)
    np.testing.assert_array_equal(cold, got)


def test_dtypes_are_those_of_the_files_or_what_is_asked_for(tmp_path: Path):
    config = config_of("qwen3")
    tensors = {name: np.asarray(jnp.asarray(array, jnp.bfloat16)) for name, array in tensors_of(config).items()}
    write_folder(tmp_path, config, tensors)
    tokens = texts()
    kept, wide = from_pretrained(tmp_path, dtype=None), from_pretrained(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept.variables)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(wide.variables)} == {jnp.dtype("float32")}
    wanted = np.stack([logits_of(config, tensors, row) for row in tokens])
    close(np.asarray(wide(tokens)), wanted)
    assert kept(tokens).dtype == jnp.bfloat16
    assert np.abs(np.asarray(kept(tokens), np.float32) - wanted).max() < 0.1 * np.abs(wanted).max()


LIBRARY = {
    "Llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "Mistral": {"sliding_window": 5},
    "Gemma": {"head_dim": 8},
}
LIBRARY["Llama"]["rope_parameters"] |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize("name", LIBRARY)
def test_numbers_are_those_of_the_library_that_wrote_the_folder(tmp_path: Path, name: str):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {**{k: v for k, v in config_of("llama").items() if k != "model_type"}, **LIBRARY[name]}
    torch.manual_seed(0)
    module = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**config)).eval()
    with torch.no_grad():
        for key, value in module.named_parameters():
            value.copy_(torch.randn_like(value) * 0.2 + (1.0 if "norm" in key and name != "Gemma" else 0.0))
        module.save_pretrained(tmp_path, max_shard_size="10KB")
        wanted = module(torch.tensor(texts(), dtype=torch.int64)).logits.numpy()
    model = from_pretrained(tmp_path)
    close(np.asarray(model(texts())), wanted)
    close(decoded(model, texts()), wanted)
