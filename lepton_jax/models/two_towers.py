"""Customers and products as vectors, whose product says what is bought next."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array
from lepton_jax.models.tokens import as_tokens, mean_of_words


class TwoTowers(nn.Module):
    """Score all products for a customer by what lies in the basket and what was bought before.

    The customer's tower: means of the vectors of the basket's products and of the earlier ones, each through a dense layer,
    added up. The products' tower is a factor: a vector and a bias of each product. The score is the product of both towers.
    Nearly all of the parameters are the two tables.

    Args:
      products: how many.
      basket: tokens of the basket; the rest are of earlier products.
      width: of the vectors.
      dropout: fraction of the customer's vector left out in training.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> import jax
      >>> model = TwoTowers(products=7, basket=2, width=4)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((3, 5, 1, 1)))[0].shape
      (3, 7)

    Source: P. Covington et al., Deep neural networks for YouTube recommendations, 2016, section 3; without hidden layers the
    factorization of R. Salakhutdinov and A. Mnih, Probabilistic matrix factorization, 2008.
    """

    products: int
    basket: int = 32
    width: int = 64
    dropout: float = 0.3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return scores ``[B, products]`` of tokens ``[B, L]`` or ``[B, L, 1, 1]``, 1 + a product's number, 0: none."""
        tokens = as_tokens(x)
        vectors = nn.Embed(self.products + 1, self.width, dtype=self.dtype, name="bought")(tokens)
        parts = (("basket", slice(None, self.basket)), ("before", slice(self.basket, None)))
        means = [mean_of_words(vectors[:, some], tokens[:, some]) for _, some in parts]
        ends = [nn.Dense(self.width, dtype=self.dtype, name=name)(mean) for (name, _), mean in zip(parts, means)]
        customer = nn.Dropout(self.dropout, deterministic=not train)(ends[0] + ends[1])
        return nn.Dense(self.products, dtype=self.dtype, name="products")(jnp.asarray(customer))
