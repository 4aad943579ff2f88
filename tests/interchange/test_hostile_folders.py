"""Folders of decoders that are damaged, incomplete or made to harm: one clear error, before any weight is read."""

import json
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from decoder_folders import config_of, tensors_of, write_folder
from safetensors.numpy import save_file

from lepton_jax import ArtifactError, load_model
from lepton_jax.interchange import from_pretrained, safetensors_file

INDEX = "model.safetensors.index.json"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def no_weights(monkeypatch) -> None:
    """No tensor may be read."""

    def read(self, file):
        raise AssertionError(f"{self.name} was read")

    monkeypatch.setattr(safetensors_file._Tensor, "read", read)


def refused(folder: Path, *texts: str) -> None:
    tracemalloc.start()
    with pytest.raises(ArtifactError) as caught:
        from_pretrained(folder)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 26
    for text in texts:
        assert text in str(caught.value)
    assert str(folder) in str(caught.value)


def folder_with(path: Path, name: str = "llama", files: int = 1, **changes) -> Path:
    """A folder whose config says something else than its tensors, or something that cannot be."""
    config = config_of(name)
    write_folder(path, config, tensors_of(config), files)
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    return path


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "gemma2"}, "got gemma2"),
        ({"model_type": "gemma3_text"}, "got gemma3_text"),
        ({"model_type": None}, "got None"),
        ({"model_type": ["llama"]}, "got ['llama']"),
        ({"hidden_size": 1 << 60}, "hidden_size: must be a whole number"),
        ({"hidden_size": 1 << 30}, "needs [23, 1073741824], the file has [23, 16]"),
        ({"vocab_size": (1 << 31) - 1}, "model.embed_tokens.weight: needs [2147483647, 16]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: must be a whole number from 1 to"),
        ({"num_hidden_layers": 4000}, "model.layers.2.input_layernorm.weight: missing"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 3, "num_key_value_heads": 2}, "does not divide"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "no multiple of num_attention_heads"),
        ({"head_dim": 3}, "head_dim: 3 is odd"),
        ({"vocab_size": None}, "vocab_size: must be"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_type: must be one of"),
        ({"rope_scaling": {"type": "su"}}, "rope_type: must be one of"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "factor: must be a positive number"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor: must be a positive number"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "rope_theta": 0.5}, "rope_theta above 1"),
        ({"rope_scaling": 3}, "rope_parameters: must be one object"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "the same for every layer"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attention_bias": True}, "model.layers.0.self_attn.q_proj.bias: missing"),
        ({"model_type": "qwen3"}, "q_norm.weight: missing"),
        ({"tie_word_embeddings": False, "intermediate_size": 21}, "needs [21, 16], the file has [20, 16]"),
    ],
)
def test_configs_that_do_not_fit(tmp_path: Path, changes: dict, text: str):
    refused(folder_with(tmp_path, **changes), text)


@pytest.mark.usefixtures("no_weights")
def test_layers_of_kinds_that_are_not_known(tmp_path: Path):
    changes = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "chunked_attention"]}
    refused(folder_with(tmp_path, "qwen2", **changes), "layer_types: must be one of full_attention, sliding_attention")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("files", [1, 2])
def test_every_name_and_shape_is_held_against_the_config(tmp_path: Path, files: int):
    config = config_of("qwen3")
    tensors = tensors_of(config)
    missing = {name: array for name, array in tensors.items() if name != NAME}
    refused(write_folder(tmp_path / "missing", config, missing, files), f"{NAME}: missing")
    extra = {**tensors, "model.layers.9.mlp.up_proj.weight": tensors[NAME]}
    refused(
        write_folder(tmp_path / "extra", config, extra, files), "model.layers.9.mlp.up_proj.weight: float32[20, 16] that the"
    )
    turned = {**tensors, NAME: np.ascontiguousarray(tensors[NAME].T)}
    refused(write_folder(tmp_path / "turned", config, turned, files), f"{NAME}: needs [20, 16], the file has [16, 20]")
    whole = {**tensors, NAME: tensors[NAME].astype(np.int8)}
    refused(write_folder(tmp_path / "whole", config, whole, files), f"{NAME}: must be floating; the file has int8")


def test_what_older_files_hold_beside_the_weights_is_passed_over(tmp_path: Path):
    config = config_of("gemma")
    tensors = tensors_of(config)
    beside = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    same = {**tensors, **beside, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    model = from_pretrained(write_folder(tmp_path / "same", config, same))
    assert "Dense_0" not in model.variables["params"]
    other = {**same, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    refused(write_folder(tmp_path / "other", config, other), "ties lm_head.weight to the embedding")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "a\\b.safetensors", "c:x"]
)
def test_an_index_that_leads_out_of_the_folder(tmp_path: Path, file: str):
    config = config_of("llama")
    write_folder(tmp_path, config, tensors_of(config))
    folder = write_folder(tmp_path / "inner", config, tensors_of(config), 2)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NAME] = file
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "leads elsewhere", INDEX)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("index", "text"),
    [
        ({"weight_map": {}}, "weight_map must give"),
        ({"weight_map": []}, "weight_map must give"),
        ({"weight_map": {NAME: 3}}, "weight_map must give"),
        ({}, "weight_map must give"),
        ({"weight_map": {NAME: "model-00009-of-00002.safetensors"}}, "model-00009-of-00002.safetensors: missing"),
        ({"weight_map": {NAME: "model-00001-of-00002.safetensors"}}, "the index says"),
        ({"weight_map": {NAME: "config.json"}}, "leads elsewhere, or is of another kind"),
    ],
)
def test_an_index_that_is_wrong(tmp_path: Path, index: dict, text: str):
    folder = folder_with(tmp_path, files=2)
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, text)


@pytest.mark.usefixtures("no_weights")
def test_a_tensor_in_two_files(tmp_path: Path):
    folder = folder_with(tmp_path, files=2)
    index = json.loads((folder / INDEX).read_text())
    other = set(index["weight_map"].values()) - {index["weight_map"][NAME]}
    file = folder / other.pop()
    there = tensors_of(config_of("llama"))
    save_file({n: a for n, a in there.items() if index["weight_map"][n] == file.name or n == NAME}, file)
    refused(folder, NAME)


class Harm:
    def __reduce__(self):
        return (exec, ("raise SystemError('ran')",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_not_touched(tmp_path: Path, name: str):
    (tmp_path / "config.json").write_text(json.dumps(config_of("llama")))
    (tmp_path / name).write_bytes(pickle.dumps(Harm()))
    refused(tmp_path, "pickled", "save_pretrained")


@pytest.mark.usefixtures("no_weights")
def test_damaged_files(tmp_path: Path):
    folder = folder_with(tmp_path / "short")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-5])
    refused(folder, "no whole safetensors file")
    header = json.dumps({NAME: {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(folder, "no whole safetensors file")
    (folder / "config.json").write_text('{"model_type": "llama", "model_type": "llama"}')
    refused(folder, "a key stands twice")
    (folder / "config.json").write_text("[" * 100_000)
    refused(folder, "is not JSON")


def test_load_model_reads_a_folder_and_names_what_it_does_not(tmp_path: Path):
    folder = folder_with(tmp_path / "good", files=2)
    tokens = np.arange(6, dtype=np.int32)[None]
    np.testing.assert_array_equal(load_model(folder)(tokens), from_pretrained(folder)(tokens))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"empty: .*config.json"):
        load_model(tmp_path / "empty")
    for name in ("model.bin", "model.pt", "model.pth", "model.jit", "model.pkl", "model.ckpt"):
        (tmp_path / name).write_bytes(pickle.dumps(Harm()))
        with pytest.raises(ArtifactError, match=r"can run any program.*safetensors.*ONNX"):
            load_model(tmp_path / name)
