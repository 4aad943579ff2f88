"""Anomalies in time series of servers, prices, traffic and machines (NAB), by an autoencoder of windows.

Source: none for this recipe; A. Lavin and S. Ahmad 2015 for the set.
Command: python -m experiments.applications --config configs/applications_monitoring.py --seeds 3
Time: 2 minutes on 2 CPU cores that much other work shared.
Aim: an area of 0.65 under the curve for the dense network; the distance from the first 15 %'s mean has 0.588.
Result, mean of 3 seeds: dense 0.683; int8 0.684 at 3.59x (4x missed: a file of 12 kB), pruned 0.690 at 1.57x, both 0.690 at
5.55x, distilled 0.689, tuned 0.693 at 6.65x. Fewer channels take 0.91 of the dense time on ONNX Runtime: 1.15x is missed.
"""

from experiments.common.config import Adam
from experiments.common.objectives import Anomalies
from experiments.common.sources import Nab
from experiments.studies.applications import Applications, Task
from lepton_jax.models import WindowAutoencoder

KNOWN = (
    "35 real series, about 10 % of whose points lie in labelled windows. The network is trained on the first 15 % of "
    "every series, without labels, chosen by the rest of 23 series (validation), and tested on the rest of 12 others; "
    "one validation series has no anomaly, and does not count. Figures are areas under the curve, the mean over "
    "series. On the test series the distance from the first 15 %'s mean has 0.588, a rolling z-score 0.535; aim for "
    "the dense network: 0.65."
)


def get_config() -> Applications:
    data = Nab()
    net = Task(
        name="autoencoder",
        model=WindowAutoencoder(points=data.window, code=4),
        dense_epochs=6,
        epochs=2,
        dense_optimizer=Adam(learning_rate=2e-3),
        optimizer=Adam(learning_rate=5e-4),
        batch_size=128,
        objective=Anomalies(newest=data.window),
    )
    return Applications(name="applications_monitoring", data=data, tasks=(net,), known=KNOWN)
