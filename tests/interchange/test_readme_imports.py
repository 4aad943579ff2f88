"""What the README shows of other frameworks runs, where they are installed."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from decoder_folders import config_of, tensors_of, write_folder

import lepton_jax as lepton

README = (Path(__file__).parents[2] / "README.md").read_text()


def run(heading: str, **names) -> dict:
    """Run the snippet under a heading."""
    text = README[README.index(f"### {heading}\n") :]
    names |= {"jax": jax, "jnp": jnp, "lepton": lepton}
    exec(compile(re.search(r"```py\n(.*?)```", text, flags=re.DOTALL)[1], "README.md", "exec"), names)
    return names


def test_a_language_model(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of("llama") | {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 64}
    write_folder(tmp_path / "llama", config, tensors_of(config))
    names = run("A language model")
    assert (lepton.load_model("llama.lepton")(names["prompt"]) == names["small"](names["prompt"])).all()


def test_from_keras(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    keras_model, x = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)]), jnp.ones((2, 4))
    names = run("From Keras", keras_model=keras_model)
    with jax.numpy_rank_promotion("allow"):
        assert (lepton.load_model("from_keras.lepton")(x) == names["small"](x)).all()
        assert abs(keras_model(x) - names["small"](x)).max() < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_from_pytorch(tmp_path: Path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    names, x = run("From PyTorch", module=module, torch=torch), jnp.ones((2, 4))
    assert (lepton.load_model("from_torch.lepton")(x) == names["small"](x)).all()
