"""The web page in a browser: what is dropped, drawn or typed gives the numbers that Python gives, float beside eight bits."""

import base64
import io
import json
import os
from pathlib import Path

import browser
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest

from lepton_jax import Model, deploy
from lepton_jax.command_line import main
from lepton_jax.models import BagOfEmbeddings, LeNet5, ResNetCifar, Transformer

NODE_MODULES = os.environ.get("LEPTON_NODE_MODULES", "")
"""A folder in which onnxruntime-web is installed."""
HAS_WEB = browser.CHROMIUM is not None and (Path(NODE_MODULES or "none") / "onnxruntime-web").is_dir()
in_browser = pytest.mark.skipif(
    not HAS_WEB, reason="needs Chromium, and LEPTON_NODE_MODULES, a folder in which onnxruntime-web is installed"
)
READY = "document.body.dataset.ready"


def model_of(net, x, seed=1):
    """A net of which no weight is zero."""
    variables = net.init(jax.random.key(seed), x[:1])
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    params = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return Model(net.apply, {**variables, "params": jax.tree.unflatten(tree, params)}, (x[:1],))


@pytest.fixture
def page(tmp_path):
    """Opens the page of a model, calibrated, beside which the runtime is."""
    with browser.served(tmp_path) as address, browser.opened() as found:

        def show(model, batch, **options):
            deploy.write_folder(model, tmp_path, "html", batches=[batch], **options)
            (tmp_path / "node_modules").symlink_to(NODE_MODULES)
            found.open(f"{address}/index.html", READY)
            return found

        yield show


def check(page, folder, inputs, rows, pick=lambda out: out):
    """What was shown is what Python gives: in eight bits to the bit, in float within rounding."""
    assert not page.errors
    assert [row["name"] for row in rows] == ["float", "model"]
    found = []
    for row in rows:
        wanted = pick(onnxruntime.InferenceSession(folder / f"{row['name']}.onnx").run(None, {"input_0": inputs})[0]).reshape(
            -1
        )
        assert np.abs(np.float32(row["scores"]) - wanted).max() <= (
            0 if row["name"] == "model" else 1e-5 * np.abs(wanted).max()
        )
        assert row["best"] == wanted.argmax()
        assert row["ms"] > 0
        found.append(wanted)
    assert np.abs(found[0] - found[1]).max() > 0
    shown = page.value(
        "Array.from(document.querySelectorAll('#scores tr'), (row) => Array.from(row.cells, (c) => c.textContent))"
    )
    assert shown[0] == ["class", "float", "8 bits"]
    np.testing.assert_allclose(np.array([row[1:] for row in shown[1:]], float), np.stack(found, 1), atol=6e-5)
    assert page.value("Number(document.querySelector('#table').rows[2].cells[3].textContent)") > 0


def png_of(pixels):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


@in_browser
def test_a_dropped_picture(page, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (24, 24, 3), np.uint8)
    batch = jax.random.uniform(jax.random.key(0), (6, 24, 24, 3))
    labels = ["cat", "<b>dog</b>", *map(str, range(2, 10))]
    shown = page(model_of(ResNetCifar(depth=8, features=4), batch), batch, labels=labels)
    rows = shown.value(f"""(async () => {{
        const bytes = Uint8Array.from(atob("{png_of(pixels)}"), (c) => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "x.png", {{ type: "image/png" }}));
        const drop = new DragEvent("drop", {{ dataTransfer, bubbles: true, cancelable: true }});
        window.finished = new Promise((done) => {{ const print_ = print; print = (rows) => {{ print_(rows); done(rows); }}; }});
        document.body.dispatchEvent(drop);
        return await window.finished;
    }})()""")
    check(shown, tmp_path, pixels[None].astype(np.float32) / np.float32(255), rows)
    said = shown.value("document.getElementById('scores').textContent")
    assert "<b>dog</b>" in said
    assert "cat" in said


@in_browser
def test_a_drawn_digit(page, tmp_path):
    batch = jax.random.uniform(jax.random.key(0), (6, 28, 28, 1))
    shown = page(model_of(LeNet5(), batch), batch)
    left, top = shown.value("(({ x, y }) => [x, y])(document.getElementById('canvas').getBoundingClientRect())")
    before = shown.value("document.getElementById('scores').textContent")
    shown.mouse("Pressed", left + 140, top + 40)
    for step in range(1, 21):
        shown.mouse("Moved", left + 140, top + 40 + 10 * step)
    shown.mouse("Released", left + 140, top + 240)
    changed = f"document.getElementById('scores').textContent !== {json.dumps(before)}"
    shown.value(f"(async () => {{ while (!({changed})) await new Promise((done) => setTimeout(done, 50)); }})()")
    drawn = np.float32(shown.value("Array.from(tensor().data)")).reshape(1, 28, 28, 1)
    stroke = drawn[0, 6:22, 13:15, 0]
    assert (stroke > 0.8).all()
    assert (drawn[0, :, :8] == 0).all()
    check(shown, tmp_path, drawn, shown.value("run()"))


def typed(shown, text):
    shown.value("document.getElementById('text').focus()")
    shown.type(text)
    return shown.value("run()")


@in_browser
def test_a_sentence_of_which_the_next_character_is_told(page, tmp_path):
    letters = {letter: number for number, letter in enumerate(" abcdefghijklmnopqrstuvwxyz")}
    net = Transformer(vocabulary=27, depth=1, width=16, heads=2, mlp=32, max_length=20)
    batch = jax.random.randint(jax.random.key(0), (6, 20), 0, 27)
    shown = page(model_of(net, batch), batch, vocabulary=letters)
    rows = typed(shown, "the sky, is blue")
    tokens = np.zeros((1, 20), np.int32)
    known = [letters[letter] for letter in "the sky is blue"]
    tokens[0, : len(known)] = known
    check(shown, tmp_path, tokens, rows, lambda out: out[0, len(known) - 1])


@in_browser
@pytest.mark.parametrize("words", [{"good": 2, "bad": 3, "film": 4}, None])
def test_a_sentence_of_words_or_of_bytes(page, tmp_path, words):
    size = 5 if words else 256
    batch = jax.random.randint(jax.random.key(0), (6, 8), 0, size)
    shown = page(model_of(BagOfEmbeddings(vocabulary=size, width=16), batch), batch, vocabulary=words, labels=["no", "yes"])
    rows = typed(shown, "A good film" if words else "Grün")
    tokens = np.zeros((1, 8), np.int32)
    found = [1, 2, 4] if words else list("Grün".encode())
    tokens[0, : len(found)] = found
    check(shown, tmp_path, tokens, rows)


@in_browser
def test_a_missing_file_is_said(tmp_path):
    deploy.write_folder(Model(lambda v, x: x @ v, jnp.eye(3), (jnp.ones((1, 3)),)), tmp_path, "html")
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "model.onnx").unlink()
    with browser.served(tmp_path) as address, browser.opened() as shown:
        shown.open(f"{address}/index.html", "document.getElementById('said').textContent")
        assert "model.onnx: 404" in shown.value("document.getElementById('said').textContent")


def test_labels_and_words_from_files(tmp_path, capsys):
    batch = jax.random.randint(jax.random.key(0), (6, 8), 0, 5)
    model_of(BagOfEmbeddings(vocabulary=5, width=8), batch).save(tmp_path / "m.lepton")
    (tmp_path / "labels.txt").write_text("no\n</script>\n")
    (tmp_path / "words.json").write_text('{"good": 2, "@TITLE@": 3}')
    words = ["deploy", str(tmp_path / "m.lepton"), "--to", "html", "--labels", str(tmp_path / "labels.txt"), "--vocabulary"]
    assert main([*words, str(tmp_path / "words.json")]) == 0
    text = (tmp_path / "m.deploy" / "index.html").read_text()
    assert text.count("</script>") == 2
    assert '"good": 2, "@TITLE@": 3' in text
    (tmp_path / "words.json").write_text('{"good": "2"}')
    assert main([*words, str(tmp_path / "words.json")]) == 2
    assert "must have a number for each word" in capsys.readouterr().err


def test_a_vocabulary_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="vocabulary must give words numbers from 0 on"):
        deploy.write_folder(Model(lambda v, x: x @ v, jnp.eye(3), (jnp.ones((1, 3)),)), tmp_path, "html", vocabulary={"a": -1})
    assert not list(tmp_path.iterdir())
