"""LotteryTicket tickets in LeNet-300-100 on Fashion-MNIST: weights gone back to, rates gone back to, or weights drawn anew.

Source: Frankle and Carbin 2019, figures 3 and 4, and Renda, Frankle, Carbin 2020, for the form; no paper has these figures for
this set. Half of what is left goes each round, where the papers take a fifth, for time.
Command: python -m experiments.lottery_ticket --seeds 3
Time: 7 to 8 minutes on 2 CPU cores.
Result, mean of 3 seeds: dense 89.08 %; at 93.75 % sparsity weights gone back to 89.13, rates gone back to 88.99, drawn anew
87.24; at 98.4 % 87.41, 85.93 and 84.87. Rewound networks are above the dense one up to 87.5 %, those drawn anew only at 50 %.
"""

from experiments.common.config import Adam, Tfds
from experiments.studies.lottery_ticket import LotteryTicket
from lepton_jax.models import LeNet300


def get_config() -> LotteryTicket:
    return LotteryTicket(
        name="lottery_ticket",
        data=Tfds(name="fashion_mnist"),
        model=LeNet300(),
        epochs=8,
        optimizer=Adam(learning_rate=3e-3),
    )
