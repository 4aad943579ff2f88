"""Plain, activation-aware and Fisher-weighted SVD of a ResNet-20 and a character transformer; four rules for ranks.

Source: Wang et al. 2024 (SVD-LLM) and Hsu et al. 2022 (FWSVD), for the methods; no paper has these figures.
Command: python -m experiments.low_rank --data FOLDER
Time: 40 minutes for the ResNet-20 and 22 for the transformer, on 2 CPU cores that other work shared; so one seed.
Result, error of ResNet-20 in percent before and after an epoch of tuning, at 70 % of the MACs (dense 8.5): plain 38.2 and 11.3,
activation-aware 14.3 and 11.4, Fisher-weighted 42.3 and 10.5; at 50 %: 75.0 and 21.2, 33.1 and 19.2, 88.6 and 20.0. Ranks at
50 %, tuned: budget 21.2, energy 24.3, uniform 30.2, EVBMF 64.4. Perplexity of the transformer at 50 % (dense 5.66, tuned 5.50):
plain 9.70 and 5.93, activation-aware 6.94 and 5.78, Fisher-weighted 9.71 and 5.97; ranks, tuned: energy 5.92, budget 5.93,
uniform 5.99, EVBMF 6.06. The table is of its revision: since then ResNet-20 is tuned on images in another order.
"""

from experiments.common.char_lm import CharLM
from experiments.studies.low_rank.study import Study
from experiments.studies.low_rank.tasks import Characters, ResNet20


def get_config() -> Study:
    characters = Characters(model=CharLM(steps=1000), tuning_steps=200)
    return Study(name="low_rank", tasks={"resnet20": ResNet20(), "char_lm": characters})
