"""Plain, activation-aware and Fisher-weighted SVD of a ResNet-20 and a character transformer; four rules for ranks.

Source: Wang et al. 2024 (SVD-LLM) and Hsu et al. 2022 (FWSVD), for the methods; no paper has these figures.
Command: python -m experiments.low_rank --data FOLDER --seeds 3
Time: 77 minutes, 62 of CPU, on 2 cores that other work shared.
Result, mean of 3 seeds, error of ResNet-20 in percent before and after an epoch of tuning, at 70 % of the MACs (dense 8.5 and
9.0): plain 38.2 and 11.4, activation-aware 14.3 and 11.4, Fisher-weighted 42.3 and 11.1; at 50 %: 75.0 and 20.6, 33.1 and
18.4, 88.6 and 20.6. Ranks at 50 %, tuned: budget 20.6, energy 25.7, uniform 30.3, EVBMF 64.0. Perplexity of the transformer
at 50 % (dense 6.31, tuned 6.18): plain 9.01 and 6.60, activation-aware 7.16 and 6.44, Fisher-weighted 9.27 and 6.61; ranks,
tuned: budget 6.60, energy 6.76, uniform 6.79, EVBMF 6.85. The transformer is trained for 1,000 steps and tuned for 200, less
than an epoch, so that three seeds take an hour: tuning gains on the dense one, too.
"""

from experiments.common.char_lm import CharLM
from experiments.common.low_rank_tasks import Characters, ResNet20
from experiments.studies.low_rank import LowRank


def get_config() -> LowRank:
    characters = Characters(model=CharLM(steps=1000), tuning_steps=200)
    return LowRank(name="low_rank", tasks={"resnet20": ResNet20(), "char_lm": characters})
