"""Rules: what they match, in which order, what is explained, and every misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.quantization import (
    Dynamic,
    Rule,
    Static,
    Uniform,
    calibrate_activations,
    explain,
    first_and_last,
    quantize,
    quantize_activations,
    with_sites,
)

EIGHT, FOUR = Dynamic(Uniform(8)), Dynamic(Uniform(4))
X = jnp.ones((2, 3))


def mlp(v: dict, x: jax.Array) -> jax.Array:
    for name in ("a", "b", "c"):
        with jax.named_scope(f"layer_{name}"):
            x = jnp.tanh(x @ v[name]["kernel"])
    return x


V = {name: {"kernel": jnp.eye(3) + 0.1} for name in "abc"}


def chosen(rules: object, apply: object = mlp, variables: object = V, *inputs: object) -> dict:
    found = explain(apply, rules, variables, *(inputs or (X,)))
    return {(o.operation, o.argument): (o.rule, o.quantizer, o.reason) for o in found}


def test_the_first_rule_that_matches_decides() -> None:
    rules = [
        Rule(operation="layer_b", argument="any", quantizer=None),
        Rule(path="c/*", argument="rhs", quantizer=FOUR),
        Rule(argument="any", quantizer=EIGHT),
    ]
    assert chosen(rules) == {
        ("layer_a/dot_general", "lhs"): (2, EIGHT, ""),
        ("layer_a/dot_general", "rhs"): (2, EIGHT, ""),
        ("layer_b/dot_general", "lhs"): (0, None, "its rule leaves it as it is"),
        ("layer_b/dot_general", "rhs"): (0, None, "its rule leaves it as it is"),
        ("layer_c/dot_general", "lhs"): (2, EIGHT, ""),
        ("layer_c/dot_general", "rhs"): (1, FOUR, ""),
    }


def test_first_and_last() -> None:
    ends = first_and_last(mlp, V, X)
    assert ends == ("layer_a/dot_general", "layer_c/dot_general")
    rules = [Rule(names=ends, argument="any", quantizer=EIGHT), Rule(argument="any", quantizer=FOUR)]
    assert [quantizer.format.bits for _, quantizer, _ in chosen(rules).values()] == [8, 8, 4, 4, 8, 8]

    def attention(v: dict, x: jax.Array) -> jax.Array:
        return (x @ x.T) @ (x @ v) @ (x.T @ x)

    assert first_and_last(attention, jnp.eye(3), X) == ("dot_general_1",)
    with pytest.raises(ValueError, match="has no dot or convolution with a weight"):
        first_and_last(lambda v, x: x @ x.T, {}, X)


def strange(v: dict, x: jax.Array) -> jax.Array:
    """What cannot be quantized, and why."""

    @jax.custom_vjp
    def own_rule(x: jax.Array) -> jax.Array:
        return x @ v["w"]

    own_rule.defvjp(lambda x: (x @ v["w"], None), lambda _, g: (g @ v["w"].T,))
    whole = jnp.ones((2, 3), jnp.int32) @ jnp.ones((3, 3), jnp.int32)
    looped = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] @ v["w"]), (0, x))[1]
    return own_rule(x) + looped + whole + v["table"][jnp.array([1, 0])]


def test_explain_says_why_not() -> None:
    v = {"w": jnp.eye(3), "table": jnp.ones((4, 3))}
    found = explain(strange, Rule(argument="any", quantizer=Static()), v | {"more": jnp.eye(3)}, X)
    reasons = [operand.reason for operand in found]
    assert sum(reason == "stands in a function with a derivative rule of its own" for reason in reasons) == 2
    assert sum("stands in a while loop, which has no place for calibrated ranges" in reason for reason in reasons) == 2
    assert sum(reason == "is int32" for reason in reasons) == 2
    assert [operand.reason for operand in found if operand.is_gather] == ["no rule matches"]
    table = str(found).splitlines()
    assert table[0].split() == ["operation", "operand", "is", "shape", "rounded", "by", "rule"]
    assert len(table) == 1 + len(found)
    # A dynamic range has its place in a while loop.
    out = quantize_activations(strange, Rule(quantizer=Dynamic(Uniform(2))))(v, 0.9 * X.at[0, 0].set(10 / 9))
    assert np.isfinite(out).all()
    assert not np.array_equal(out, strange(v, 0.9 * X.at[0, 0].set(10 / 9)))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule(operation="layer_d", quantizer=EIGHT)], r"rule 0, Rule\(operation=\('layer_d',\)\): matches nothing.*layer_a"),
        ([Rule(path="d/kernel", quantizer=EIGHT)], r"matches nothing(.|\n)*Parameters in them: a/kernel, b/kernel, c/kernel"),
        ([Rule(names="layer_a", quantizer=EIGHT)], r"matches nothing(.|\n)*Names: layer_a/dot_general, "),
        (
            [Rule(quantizer=EIGHT), Rule(operation="layer_a", quantizer=FOUR)],
            "rule 1.*earlier rules decide.*Put it before them",
        ),
        ([Rule(quantizer=Dynamic(Uniform(8, channel_axis=2)))], r"layer_a/dot_general lhs: channel_axis=2 is out of range"),
        (
            [Rule(quantizer=Dynamic(Uniform(8, group_size=32, group_axis=-1)))],
            "layer_c/dot_general lhs: group_size=32 is larger",
        ),
        ([Rule(quantizer=Static(), free_axes=True)], "free_axes has a scale for each example, which cannot be calibrated"),
        ([Rule(quantizer=Dynamic(Uniform(8, group_size=2)), free_axes=True)], "free_axes takes the place of groups"),
        ([], "at least one is needed"),
    ],
)
def test_rules_that_do_not_fit(rules: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_activations(mlp, rules)(V, X)


def test_what_is_no_rule_or_quantizer() -> None:
    for make, message in (
        (lambda: Rule(quantizer=Uniform(8)), r"one of activations, e.g. Dynamic\(Uniform\(bits=8"),
        (lambda: Rule(quantizer="int8"), "one of activations, e.g.*or None; got 'int8'"),
        (lambda: Rule(operation=3, quantizer=EIGHT), "Rule: operation must be glob patterns"),
        (lambda: Dynamic("int8"), r"Dynamic: format must be a number format, e.g. Uniform\(bits=8\); got 'int8'"),
        (lambda: Static(Uniform(8), "minmax"), "calibration must be a Calibration"),
        (lambda: quantize_activations(mlp, [EIGHT]), "rules must be of the class Rule"),
        (lambda: with_sites([1], {}), "the variables must be a mapping"),
    ):
        with pytest.raises(TypeError, match=message):
            make()
    with pytest.raises(ValueError, match="argument must be one of activation, weight, lhs, rhs, any; got 'left'"):
        Rule(argument="left", quantizer=EIGHT)


def test_sites_that_lack_or_are_bad() -> None:
    rule = Rule(operation="layer_a", quantizer=Static())
    f = quantize_activations(mlp, rule)
    with pytest.raises(ValueError, match=r"layer_a/dot_general/lhs: has no site(.|\n)*with_sites"):
        f(V, X)
    sites = calibrate_activations(mlp, rule, V, [X])
    for bad, message in ((0.0, "scale: is zero"), (-1.0, "scale: is negative"), (jnp.inf, "scale: is not finite")):
        broken = {"layer_a/dot_general": {"lhs": {"scale": jnp.full((1, 1), bad)}}}
        with pytest.raises(ValueError, match=f"layer_a/dot_general/lhs/{message}"):
            f(with_sites(V, broken), X)
    assert with_sites(V, sites)["quantization"] is sites


def test_calibration_that_fails_names_the_operand() -> None:
    rule = Rule(quantizer=Static())
    with pytest.raises(ValueError, match="needs at least one batch"):
        calibrate_activations(mlp, rule, V, [])

    def branching(v: dict, x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] > 5, lambda x: x @ v, lambda x: x, x)

    with pytest.raises(ValueError, match=r"dot_general/lhs: never ran on these batches"):
        calibrate_activations(branching, rule, jnp.eye(3), [X, 2 * X])
    sites = calibrate_activations(branching, rule, jnp.eye(3), [X, 63.75 * X, 2 * X])
    assert sites["dot_general"]["lhs"]["scale"].item() == 0.5
    quantizer = Static(Uniform(8, scale_dtype="float16"))
    extreme = calibrate_activations(mlp, Rule(operation="layer_a", quantizer=quantizer), V, [X * 1e30])
    assert np.isfinite(extreme["layer_a/dot_general"]["lhs"]["scale"]).all()


def test_explain_of_packed_leaves_and_of_what_cannot_be_looked_into() -> None:
    leaves = V | {"a": {"kernel": quantize(V["a"]["kernel"], Uniform(4))}}
    found = chosen(Rule(argument="any", quantizer=EIGHT), mlp, leaves)
    assert found["layer_a/dot_general", "rhs"] == (0, None, "is packed already, int4")
    assert found["layer_b/dot_general", "rhs"] == (0, EIGHT, "")

    def solving(v: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.custom_linear_solve(lambda y: v @ y, (x @ v).T, lambda _, b: jnp.linalg.inv(v) @ b)

    table = explain(solving, Rule(operation="dot_general", quantizer=EIGHT), jnp.eye(3), X)
    assert table.unseen == ("custom_linear_solve",)
    assert str(table).splitlines()[-1] == "custom_linear_solve: cannot be looked into; nothing in it is rounded"


def test_infinite_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="layer_a/dot_general/lhs: met infinite values; calibrate on finite batches"):
        calibrate_activations(mlp, Rule(operation="layer_a", quantizer=Static()), V, [X, X.at[0, 0].set(jnp.inf)])


def test_constant_and_empty_ranges_have_scales() -> None:
    rule = Rule(operation="layer_a", quantizer=Static())
    sites = calibrate_activations(mlp, rule, V, [0 * X])
    assert sites["layer_a/dot_general"]["lhs"]["scale"].item() == 1.0
    leaves = {name: {"kernel": quantize(v["kernel"], Uniform(8))} for name, v in V.items()}
    assert calibrate_activations(mlp, rule, leaves, [X])["layer_a/dot_general"]["lhs"]["scale"].item() == pytest.approx(
        1 / 127.5
    )
    assert calibrate_activations(mlp, Rule(quantizer=EIGHT), V, [X]) == {}
