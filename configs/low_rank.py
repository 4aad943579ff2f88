"""Plain, activation-aware and Fisher-weighted SVD of a ResNet-20 and a character transformer; four rules for ranks.

Source: Wang et al. 2024 (SVD-LLM) and Hsu et al. 2022 (FWSVD), for the methods; no paper has these figures.
Command: python -m experiments.low_rank --data FOLDER
"""

from experiments.low_rank_study import Study
from experiments.low_rank_tasks import Characters, ResNet20


def get_config() -> Study:
    return Study(name="low_rank", tasks={"resnet20": ResNet20(), "char_lm": Characters()})
