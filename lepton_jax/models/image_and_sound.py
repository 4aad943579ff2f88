"""A written and a spoken digit, each by a small convolutional network, and both together."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lepton_jax.core.typing import Array


class _Encoder(nn.Module):
    """Convolutions with batch norm, ReLU and 2x2 max pooling, then a dense layer with ReLU."""

    features: tuple[int, ...]
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        for channels in self.features:
            x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2), padding="SAME")
        return nn.relu(nn.Dense(self.width, dtype=self.dtype)(x.reshape(x.shape[0], -1)))


class ImageAndSound(nn.Module):
    """Classify pictures with an image above a sound's spectrogram, as `lepton_jax.data.load_av_digits` makes them.

    Two encoders of the same form, whose outputs go side by side into a dense layer (late fusion). In training each input gets
    noise, and either the image or the sound is left out, at random, so that the other suffices.

    Args:
      classes: how many logits.
      rows: of the image; the rest is the sound.
      features: channels of the convolutions.
      width: of each encoder's output.
      left_out: fraction of the examples whose image is left out, and of those whose sound is.
      noise: deviation of the noise in training, drawn for each example between 0 and this.
      dtype: of the computation; parameters stay float32. None computes in the parameters' dtype.

    Example:
      >>> x = jnp.zeros((2, 76, 32, 1))
      >>> jax.eval_shape(ImageAndSound().init_with_output, jax.random.key(0), x)[0].shape
      (2, 10)

    Source: late fusion as in J. Ngiam et al., Multimodal deep learning, 2011; inputs left out as in N. Neverova et al.,
    ModDrop, 2016.
    """

    classes: int = 10
    rows: int = 28
    features: tuple[int, ...] = (8, 16, 32)
    width: int = 32
    left_out: float = 0.15
    noise: float = 1.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Return logits ``[B, classes]`` of pictures ``[B, H, W, 1]``; `train` leaves inputs out, and adds noise."""
        if train and self.has_rng("dropout"):
            x = self._spoiled(x)
        image, sound = x[:, : self.rows, : self.rows], x[:, self.rows :]
        both = [_Encoder(self.features, self.width, self.dtype, name=name) for name in ("image", "sound")]
        y = jnp.concatenate([encode(part, train) for encode, part in zip(both, (image, sound))], axis=-1)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(y)

    def _spoiled(self, x: Array) -> Array:
        noise, strength, chosen = jax.random.split(self.make_rng("dropout"), 3)
        strengths = self.noise * jax.random.uniform(strength, (x.shape[0], 1, 1, 1))
        x = x + strengths * jax.random.normal(noise, x.shape)
        chance = jax.random.uniform(chosen, (x.shape[0], 1, 1, 1))
        above = (jnp.arange(x.shape[1]) < self.rows)[None, :, None, None]
        out = jnp.where(above, chance < self.left_out, chance > 1 - self.left_out)
        return jnp.where(out, 0, x)
