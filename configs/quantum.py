"""Digits by a small network whose middle layer is a simulated quantum circuit of 4 qubits, or something else of its size.

Source: none for these rows; the circuit is that of A. Perez-Salinas et al., "Data re-uploading for a universal quantum
classifier", 2020.
Command: python -m experiments.quantum --seeds 5
Time: 3 minutes on 2 CPU cores that much other work shared.
Result, mean of 5 seeds: classical 87.28 %, none 85.06, quantum 68.89, random circuit 64.28; with 8 layers 76.17 against
77.39. No circuit is as good as no middle layer. 4 bits cost the angles nothing, 100 measurements an example 1.3 points.
"""

from experiments.common.config import Digits
from experiments.studies.quantum import Quantum, Row

ROWS = (
    # Of as many parameters in the middle (24), the classical one first.
    Row(name="classical", middle="classical"),
    Row(name="sine", middle="sine"),
    Row(name="quantum"),
    Row(name="random", middle="random", deviation=1.0),
    Row(name="none", middle="none"),
    Row(name="read_once", reupload=False),
    # Depth.
    Row(name="quantum_1", layers=1),
    Row(name="quantum_4", layers=4),
    Row(name="classical_4", middle="classical", layers=4),
    Row(name="quantum_8", layers=8),
    Row(name="classical_8", middle="classical", layers=8),
    # Initialisation.
    Row(name="from_one_hundredth", deviation=0.01),
    Row(name="from_1", deviation=1.0),
    Row(name="from_3", deviation=3.0),
    # Measurements.
    Row(name="shots_10", shots=10),
    Row(name="shots_100", shots=100),
    Row(name="shots_1000", shots=1000),
    # Angles as any leaf.
    Row(name="bits_8", bits=8),
    Row(name="bits_4", bits=4),
    Row(name="bits_2", bits=2),
    Row(name="half_zeros", sparsity=0.5),
    Row(name="half_zeros_bits_4", sparsity=0.5, bits=4),
)


def get_config() -> Quantum:
    return Quantum(name="quantum", data=Digits(), rows=ROWS)
