"""The study of optimised graphs, at a small size."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from experiments import graph_optimisation
from experiments.studies.graph_optimisation import PRIMITIVES, ROWS, of_kind, operations, step, whole
from experiments.studies.single_point.layers import optimised


def test_a_run_writes_gains_beside_claims(run_script, tmp_path, capsys):
    words = ("--only", "papers_cnn", "--images", 1, "--rounds", 3, "--tries", 1, "--run-dir", tmp_path / "run")
    assert run_script(graph_optimisation, *words) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert [one["settings"]["what"] for one in results] == [*PRIMITIVES, "whole", "step"]
    assert [one["count"][0] for one in results] == [3, 3, 1, 1, 1]
    assert all(one["after_ratio"][0] > 0 for one in results)
    said = (tmp_path / "run" / "report.md").read_text()
    assert "pool: claimed +30 %" in said
    assert "time: claimed -20 %" in said


def test_before_and_after_compute_the_same():
    row = ROWS[0]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *row.shape)), jnp.float32)
    for piece in (whole(row.make(), x, 0), step(row.make(), x, 0)):
        call, variables, inputs = piece
        theirs = jax.jit(call)(variables, *inputs)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(theirs))
    before = whole(row.make(), x, 0)
    after = optimised(before)
    ours, theirs = (jax.jit(call)(variables, *inputs) for call, variables, inputs in (after, before))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for kind in row.kinds:
        assert operations(row.make(), x, kind)
        first, second, count = of_kind(row.make(), x, kind, 0)
        (call, norms, (drawn,)), (fast, _, _) = first, second
        assert len(drawn) == count
        ones = jax.tree.map(jnp.ones_like, norms)  # where the scale is one, folding changes nothing
        for one, other in zip(jax.jit(fast)(ones, drawn), jax.jit(call)(ones, drawn), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
