"""Circuits against matrices of numpy in double precision, against PennyLane where it is installed, and as layers."""

import importlib.util
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax import chain, fake_quant, load, pack, prune, save, unpack
from lepton_jax.quantization import Uniform
from lepton_jax.quantum import (
    QuantumLayer,
    apply_gate,
    circuit,
    circuit_state,
    cnot,
    expectations,
    parameter_shift,
    rot,
    rx,
    ry,
    rz,
    sampled_expectations,
    zero_state,
)

X, Y, Z, ONE = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1]), np.eye(2)


def turned(pauli, angle):
    return np.cos(angle / 2) * ONE - 1j * np.sin(angle / 2) * pauli


def placed(gates, qubits):
    """The product over qubits of gates by qubit, the identity elsewhere."""
    whole = np.eye(1)
    for qubit in range(qubits):
        whole = np.kron(whole, gates.get(qubit, ONE))
    return whole


def flip(control, target, qubits):
    zero, one = np.diag([1, 0]), np.diag([0, 1])
    return placed({control: zero}, qubits) + placed({control: one, target: X}, qubits)


def by_matrices(angles, inputs, reupload):
    """The state at the end, by matrices of all qubits."""
    layers, qubits, _ = angles.shape
    state = np.eye(2**qubits)[0].astype(complex)
    for layer in range(layers):
        for qubit in range(qubits):
            if reupload or layer == 0:
                state = placed({qubit: turned(X, inputs[qubit])}, qubits) @ state
            for pauli, angle in zip((Z, Y, Z), angles[layer, qubit]):
                state = placed({qubit: turned(pauli, angle)}, qubits) @ state
        for qubit in range(qubits if qubits > 1 else 0):
            state = flip(qubit, (qubit + 1 + layer % (qubits - 1)) % qubits, qubits) @ state
    return state


def drawn(seed, layers, qubits):
    rng = np.random.default_rng(seed)
    return rng.uniform(-4, 4, (layers, qubits, 3)), rng.uniform(-4, 4, qubits)


@pytest.mark.parametrize(("layers", "qubits"), [(1, 1), (3, 1), (2, 2), (3, 3), (5, 4), (2, 6)])
@pytest.mark.parametrize("reupload", [True, False])
def test_a_circuit_is_its_matrices(layers, qubits, reupload):
    angles, inputs = drawn(layers * 10 + qubits, layers, qubits)
    wanted = by_matrices(angles, inputs, reupload)
    z = [np.real(wanted.conj() @ placed({qubit: Z}, qubits) @ wanted) for qubit in range(qubits)]
    given = jnp.asarray(angles, jnp.float32), jnp.asarray(inputs, jnp.float32)
    state = circuit_state(*given, reupload=reupload)
    assert state.dtype == jnp.complex64
    np.testing.assert_allclose(state, wanted, atol=2e-6)
    np.testing.assert_allclose(circuit(*given, reupload=reupload), z, atol=2e-6)
    with jax.enable_x64(True):
        exact = circuit_state(jnp.asarray(angles), jnp.asarray(inputs), reupload=reupload)
        assert exact.dtype == jnp.complex128
        np.testing.assert_allclose(exact, wanted, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_gates_and_flips_are_their_matrices(seed):
    rng = np.random.default_rng(seed)
    angle, three = rng.uniform(-7, 7), rng.uniform(-7, 7, 3)
    for gate, pauli in ((rx, X), (ry, Y), (rz, Z)):
        np.testing.assert_allclose(gate(angle), turned(pauli, angle), atol=1e-6)
        assert gate(jnp.float32(angle)).dtype == jnp.complex64
    product = turned(Z, three[2]) @ turned(Y, three[1]) @ turned(Z, three[0])
    np.testing.assert_allclose(rot(jnp.asarray(three)), product, atol=1e-6)
    state = rng.normal(size=8) + 1j * rng.normal(size=8)
    for qubit, other in ((0, 2), (1, 0), (2, 1)):
        np.testing.assert_allclose(cnot(jnp.asarray(state), qubit, other), flip(qubit, other, 3) @ state, atol=1e-6)
        gated = apply_gate(jnp.asarray(state), jnp.asarray(turned(Y, angle)), qubit)
        np.testing.assert_allclose(gated, placed({qubit: turned(Y, angle)}, 3) @ state, atol=2e-6)


@pytest.mark.skipif(importlib.util.find_spec("pennylane") is None, reason="PennyLane is not installed")
@pytest.mark.parametrize(("layers", "qubits"), [(1, 2), (4, 3), (3, 5)])
@pytest.mark.filterwarnings("ignore")
def test_a_circuit_is_that_of_pennylane(layers, qubits):
    import pennylane

    angles, inputs = drawn(layers + qubits, layers, qubits)

    @pennylane.qnode(pennylane.device("default.qubit", wires=qubits))
    def peer(reads):
        for layer in range(layers):
            if reads or layer == 0:
                pennylane.AngleEmbedding(inputs, wires=range(qubits))
            ranges = [1 + layer % (qubits - 1)]
            pennylane.StronglyEntanglingLayers(angles[layer : layer + 1], wires=range(qubits), ranges=ranges)
        return [pennylane.expval(pennylane.PauliZ(qubit)) for qubit in range(qubits)]

    with jax.enable_x64(True):
        for reupload in (True, False):
            got = circuit(jnp.asarray(angles), jnp.asarray(inputs), reupload=reupload)
            np.testing.assert_allclose(got, np.array(peer(reupload), float), atol=1e-6)


def test_ten_qubits_compile_in_time_and_keep_the_norm():
    angles, _ = drawn(3, 6, 10)
    batch = jnp.asarray(np.random.default_rng(1).uniform(-4, 4, (32, 10)), jnp.float32)
    given = jnp.asarray(angles, jnp.float32), batch
    slope = jax.jit(jax.grad(lambda angles, batch: jnp.sum(jax.vmap(circuit, (None, 0))(angles, batch))))
    for function in (jax.jit(jax.vmap(circuit_state, (None, 0))), slope):
        begun = time.process_time()
        function.lower(*given).compile()
        assert time.process_time() - begun < 3
    states = jax.jit(jax.vmap(circuit_state, (None, 0)))(*given)
    np.testing.assert_allclose(jnp.sum(jnp.abs(states) ** 2, axis=1), 1, atol=1e-6)
    alone = circuit_state(jnp.asarray(angles, jnp.float32), batch[7])
    np.testing.assert_allclose(states[7], alone, atol=1e-6)
    np.testing.assert_allclose(alone, by_gates(angles, np.asarray(batch[7], float)), atol=3e-6)


def by_gates(angles, inputs):
    """As `by_matrices`, gate by gate on an axis a qubit."""
    layers, qubits, _ = angles.shape
    state = np.zeros((2,) * qubits, complex)
    state[(0,) * qubits] = 1
    for layer in range(layers):
        for qubit in range(qubits):
            gates = (turned(X, inputs[qubit]), *map(turned, (Z, Y, Z), angles[layer, qubit]))
            for gate in gates:
                state = np.moveaxis(np.tensordot(gate, state, ((1,), (qubit,))), 0, qubit)
        for qubit in range(qubits):
            target = (qubit + 1 + layer % (qubits - 1)) % qubits
            front = np.moveaxis(state, (qubit, target), (0, 1))
            front[1] = front[1, ::-1].copy()
    return state.reshape(-1)


@pytest.mark.parametrize("reupload", [True, False])
def test_the_parameter_shift_is_the_gradient(reupload):
    angles, inputs = (jnp.asarray(some, jnp.float32) for some in drawn(5, 3, 3))
    of = partial(circuit, inputs=inputs, reupload=reupload)
    shifted, exact = jax.jit(partial(parameter_shift, of))(angles), jax.jacobian(of)(angles)
    assert shifted.shape == exact.shape == (3, 3, 3, 3)
    np.testing.assert_allclose(shifted, exact, atol=1e-5)
    np.testing.assert_allclose(parameter_shift(lambda a: of(a)[0], angles), exact[0], atol=1e-5)


def test_measurements_have_the_mean_and_the_variance_they_should():
    angles, inputs = (jnp.asarray(some, jnp.float32) for some in drawn(6, 2, 3))
    state = circuit_state(angles, inputs)
    shots, repeats, exact = 50, 4000, np.asarray(expectations(state))
    draw = jax.jit(jax.vmap(partial(sampled_expectations, shots=shots), (0, None)))
    got = np.asarray(draw(jax.random.split(jax.random.key(2), repeats), state))
    variance = (1 - exact**2) / shots
    assert np.all(np.abs(got.mean(0) - exact) < 5 * np.sqrt(variance / repeats) + 1e-6)
    np.testing.assert_allclose(got.var(0), variance, rtol=0.2, atol=1e-6)
    steps = (got + 1) * shots / 2
    np.testing.assert_allclose(steps, steps.round(), atol=1e-4)


def test_a_layer_is_its_circuit_over_any_batch():
    layer, x = QuantumLayer(layers=2), jnp.asarray(np.random.default_rng(3).normal(size=(2, 5, 3)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    got = jax.jit(layer.apply)(variables, x)
    assert (got.shape, got.dtype) == ((2, 5, 3), jnp.float32)
    np.testing.assert_allclose(got[1, 4], circuit(variables["params"]["angles"], x[1, 4]), atol=1e-6)
    many = layer.clone(shots=20_000).apply(variables, x, rngs={"shots": jax.random.key(1)})
    np.testing.assert_allclose(many, got, atol=0.05)
    assert layer.apply(variables, x[:0]).shape == (0, 5, 3)
    assert layer.apply(layer.init(jax.random.key(0), jnp.ones(1)), jnp.ones(1)).shape == (1,)


def test_angles_are_pruned_quantized_and_saved_as_any_leaf(tmp_path):
    layer, x = QuantumLayer(layers=3), jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)), jnp.float32)
    params = layer.init(jax.random.key(0), x)["params"]
    transform = chain(prune(0.5, select="angles"), fake_quant(Uniform(4), select="angles"))
    params, tstate = transform.init(params)
    params, tstate = transform.update(params, tstate, jax.tree.map(jnp.zeros_like, params), jnp.int32(0))
    seen = transform.view(params, tstate)["angles"]
    assert len(np.unique(seen)) <= 16
    assert np.count_nonzero(seen) <= 14
    packed = pack(transform, params, tstate)
    np.testing.assert_array_equal(unpack(packed)["angles"], seen)
    save(tmp_path / "layer.lepton", lambda params, x: layer.apply({"params": params}, x), packed, x)
    back = load(tmp_path / "layer.lepton")
    np.testing.assert_allclose(back(x), layer.apply({"params": {"angles": seen}}, x), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: zero_state(0), "1 to 20"),
        (lambda: circuit(jnp.zeros((1, 2, 2)), jnp.zeros(2)), "angles"),
        (lambda: circuit(jnp.zeros((1, 2, 3)), jnp.zeros(3)), "inputs"),
        (lambda: circuit(jnp.zeros((0, 2, 3)), jnp.zeros(2)), "layers"),
        (lambda: cnot(zero_state(2), 1, 1), "two qubits"),
        (lambda: cnot(zero_state(2), 0, 2), "0 to 1"),
        (lambda: apply_gate(jnp.ones(3), jnp.eye(2), 0), "shape"),
        (lambda: apply_gate(zero_state(1), jnp.eye(3), 0), "gate"),
        (lambda: rot(jnp.zeros(2)), "angles"),
        (lambda: sampled_expectations(jax.random.key(0), zero_state(1), shots=0), "shots"),
        (lambda: QuantumLayer(layers=0).init(jax.random.key(0), jnp.ones((1, 2))), "layer"),
    ],
)
def test_wrong_values_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
