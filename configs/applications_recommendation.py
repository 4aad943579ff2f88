"""What a customer of a web shop buys next (Online Retail II), by two towers and a factorization.

Source: none for this recipe.
Command: python -m experiments.applications --config configs/applications_recommendation.py --seeds 3
Aim: a hit rate at 10 of 14 % for the dense network; popularity has 3.2 %, cosines of products 12.8 %.
"""

from experiments.common.config import Adam
from experiments.common.objectives import Products
from experiments.common.sources import OnlineRetail
from experiments.studies.applications import Applications, Task
from lepton_jax.models import TwoTowers

KNOWN = (
    "4,035 customers, 3,457 products, a year. The last product of a customer is the test, the one before it "
    "validation; the order within a day is random, and in 95 % of cases both fall on one day, so that the task is "
    "near to completing a basket. All products not yet bought are ranked; popularity has 3.2 % at 10, cosines of "
    "products 12.8 %; aim for the dense network: 14 %."
)


def get_config() -> Applications:
    data = OnlineRetail()
    net = Task(
        name="two_towers",
        model=TwoTowers(products=3457, basket=data.basket),
        dense_epochs=6,
        epochs=1,
        dense_optimizer=Adam(learning_rate=3e-3),
        optimizer=Adam(learning_rate=5e-4),
        batch_size=256,
        objective=Products(),
    )
    return Applications(name="applications_recommendation", data=data, tasks=(net,), known=KNOWN)
