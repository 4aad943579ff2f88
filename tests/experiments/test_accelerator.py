"""The script for accelerators runs on CPU in tiny sizes, and claims nothing there."""

import sys

from experiments.benchmarks import accelerator


def test_tiny_sizes_on_cpu(tmp_path, monkeypatch, capsys):
    out = tmp_path / "table.md"
    monkeypatch.setattr(sys, "argv", ["accelerator", "--size", "tiny", "--out", str(out)])
    accelerator.main()
    text = out.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert "nothing here says anything of an accelerator" in text
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    wanted = [f"product, {kind}" for kind in ("bfloat16", "int8", "float8_e4m3fn", "int4 weights")]
    wanted += [f"step, {kind}" for kind in ("plain", "pruned 90 %", "QAT 8 bits")]
    assert names == ["---", *wanted, "decoding, bfloat16 weights", "decoding, int4 weights"]
    assert all(line.count("|") == 7 for line in text.splitlines() if line.startswith("| "))


def test_a_call_that_fails_is_a_line():
    def fails():
        raise TypeError("no such dtype")

    [one, other] = accelerator.compared("product", "1", {"a": lambda: None, "b": fails}, 2, 1, "/s")
    assert one[-1] == "1.00"
    assert other[3] == "does not run here: TypeError"
