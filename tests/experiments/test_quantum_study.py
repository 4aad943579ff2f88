"""The quantum study: its config runs, networks that are compared have as many parameters, the verdict says what is so."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import quantum
from experiments.common import cli
from experiments.common.config import load_config
from experiments.studies.quantum import Quantum, Row, verdict

CONFIG = cli.ROOT / "configs" / "quantum.py"


def test_two_steps(run_script, tmp_path, capsys):
    folder = tmp_path / "run"
    some = ("--only", "classical", "quantum", "shots_10", "half_zeros_bits_4")
    assert run_script(quantum, "--config", CONFIG, *some, "--max-steps", 2, "--seeds", 2, "--run-dir", folder) == 0, (
        capsys.readouterr().err
    )
    results = {one["row"]: one for one in json.loads((folder / "summary.json").read_text())["results"]}
    assert list(results) == ["classical", "quantum", "shots_10", "half_zeros_bits_4"]
    for result in results.values():
        np.testing.assert_allclose(result["accuracy"], 1 - np.array(result["error"]))
        assert len(result["error"]) == 2
        assert result["middle_parameters"] == 24
    assert results["half_zeros_bits_4"]["nonzeros"][0] <= results["quantum"]["nonzeros"][0] - 12
    assert results["shots_10"]["exact_error"] == results["quantum"]["error"]
    assert "Verdict" in (folder / "report.md").read_text()


def test_rows_that_are_compared_have_as_many_parameters():
    def count(row):
        tree = jax.eval_shape(row.network(4).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
        return sum(leaf.size for leaf in jax.tree.leaves(tree.get("middle", {})))

    rows = load_config(CONFIG, Quantum).rows
    assert {row.name for row in rows} >= {"quantum", "classical", "random", "none"}
    assert all(count(row) == (0 if row.middle == "none" else 12 * row.layers) for row in rows)


def test_a_random_circuit_stays_as_it_was_drawn():
    net = Row(name="random", middle="random").network(4)
    x = jnp.asarray(np.random.default_rng(0).random((5, 8, 8, 1)), jnp.float32)
    params = net.init(jax.random.key(0), x)["params"]
    slopes = jax.grad(lambda p: jnp.sum(net.apply({"params": p}, x) ** 2))(params)
    assert not np.any(slopes["middle"]["angles"])
    assert np.any(slopes["first"]["kernel"])


def test_the_verdict_goes_either_way():
    def result(row, middle, errors):
        return {"row": row, "settings": {"middle": middle, "layers": 2}, "seeds": [0, 1], "error": errors}

    others = [result("classical", "classical", [0.1, 0.2]), result("none", "none", [0.3, 0.4])]
    said = verdict([result("a", "quantum", [0.0, 0.1]), result("b", "quantum", [0.5, 0.6]), *others])
    assert said.splitlines() == [
        "- a: 10.00 points better than classical, 30.00 points better than none.",
        "- b: 40.00 points worse than classical, 20.00 points worse than none.",
    ]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Row(name="a", layers=0), "layers"),
        (lambda: Row(name="a", shots=0), "shots"),
        (lambda: Row(name="a", middle="classical", layers=3), "even"),
        (lambda: Row(name="a", sparsity=1.0), "sparsity"),
    ],
)
def test_rows_out_of_range_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
