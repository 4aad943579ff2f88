"""The site: it builds with warnings as errors, every link in it holds, and what its pages show runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree.ElementTree import tostring

import pytest

pytest.importorskip("mkdocs", reason="pip install 'lepton-jax[docs]'")
ROOT = Path(__file__).parents[1]
DOCS = ROOT / ".docs"
PAGES = sorted((DOCS / "pages").rglob("*.md"))


@pytest.fixture
def docs(monkeypatch):
    """The modules of the site, which lie in a hidden folder."""
    monkeypatch.syspath_prepend(DOCS)
    import api
    import formulas
    import hooks

    return {"api": api, "formulas": formulas, "hooks": hooks}


def test_it_builds_strictly_and_offline(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(DOCS / "mkdocs.yml"),
        "-d",
        str(tmp_path / "site"),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    gptq = (tmp_path / "site/api/lepton_jax.quantization.post_training.html").read_text()
    assert "<msub>" in gptq
    assert "AlgorithmError" not in gptq
    assert '<a class="autorefs' in gptq
    study = (tmp_path / "site/studies/qat_bits.html").read_text()
    assert "90.97" in study
    assert (tmp_path / "site/studies/qat_bits/accuracy.png").exists()
    for page in (tmp_path / "site").rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)\b[^>]*?(?:src|href)="?(https?:[^" >]+)', page.read_text())
        assert fetched == [], f"{page.name}: a page fetches from elsewhere"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert snippets
    exec(compile("\n".join(snippets), page.name, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_names_in_its_tables_are_there(page, docs):
    named = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \|$", page.read_text(), flags=re.MULTILINE)
    names = {name for cell in named for name in re.findall(r"(?<!`)`([A-Za-z_]\w*(?:\.[a-z_]\w*)?)`(?!`)", cell)}
    known = docs["api"].targets()
    assert {name for name in names - {"Model.from_linen", "Model.from_nnx"} if name not in known} == set()


def test_a_broken_link_is_found(tmp_path, docs):
    (tmp_path / "a.html").write_text('<h1 id="top">A</h1><a href="b.html#there"></a><a href="b.html#not"></a><img src="c.png">')
    (tmp_path / "b.html").write_text(
        '<h2 id="there">B</h2><a href="a.html#top"></a><a href="#there"></a><a href="https://x.y/z"></a>'
    )
    assert docs["hooks"].broken_links(tmp_path) == ["a.html: b.html#not", "a.html: c.png"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x^2", "<msup><mi>x</mi><mn>2</mn></msup>"),
        ("2^(b-1)", "<msup><mn>2</mn><mrow><mi>b</mi><mo>−</mo><mn>1</mn></mrow></msup>"),
        ("sqrt(S_r) <= t", "<msqrt><msub><mi>S</mi><mi>r</mi></msub></msqrt><mo>≤</mo><mi>t</mi>"),
        ("X' X / n", "<msup><mi>X</mi><mo>′</mo></msup><mspace width=\"0.25em\" /><mi>X</mi><mo>/</mo><mi>n</mi>"),
        ("sum_i |w_i|", "<munder><mo>∑</mo><mi>i</mi></munder><mspace width=\"0.25em\" />"
         "<mrow><mo>|</mo><msub><mi>w</mi><mi>i</mi></msub><mo>|</mo></mrow>"),
        ("b += W", "<mi>b</mi><mo>+=</mo><mi>W</mi>"),
        ("alpha * x", "<mi>α</mi><mo>·</mo><mi>x</mi>"),
    ],
)  # fmt: skip
def test_formulas(text, expected, docs):
    assert tostring(docs["formulas"].mathml(text), encoding="unicode") == f"<math>{expected}</math>"


@pytest.mark.parametrize(
    "text",
    [
        *("Dense_0/kernel", 'prune(0.5, structure="2:4")', "model.apply", "f(x=1)", "init(params) -> (params, state)"),
        *("*/kernel", "LEPTON_SMOKE", "step", "x: int = 3", "{path: leaf}", "", "(a + b", "a) + b"),
    ],
)
def test_code_stays_code(text, docs):
    assert docs["formulas"].mathml(text) is None
