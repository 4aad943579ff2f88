"""The README: its snippets run, and its commands are those that CI runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 2
    exec(compile("\n".join(snippets), "README.md", "exec"), {})
    assert "ratio" in capsys.readouterr().out
    assert (tmp_path / "model.lepton").stat().st_size < 4000


def test_ci_runs_the_command_that_the_readme_gives():
    install, test = re.search(r"```sh\n(pip install .*) && (python -m pytest.*)\n```", README).groups()
    script = (ROOT / ".ci" / "run").read_text()
    assert install in script
    assert test in script


def test_the_first_command_names_the_main_job():
    assert re.search(r"```sh\npip install -e '\.\[experiments\]' && python -m experiments\.deep_compression\n```", README)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []
