"""Fourier transforms of signals, whole or in frames, and the bands of the mel scale."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from lepton_jax.interchange.onnx.element_types import dtype_of
from lepton_jax.interchange.onnx.host import integers
from lepton_jax.interchange.onnx.site import Rule, Site


def dft(site: Site, x: Any, length: Any = None, axis: Any = None) -> Any:
    """Along an axis; the last one holds real and imaginary parts, or real parts alone."""
    if axis is None:
        axis = site.get("axis", 1 if site.version < 20 else -2)
    [axis] = integers(axis) if np.ndim(axis) else [int(axis)]
    axis %= x.ndim
    inverse, half = bool(site.get("inverse", 0)), bool(site.get("onesided", 0))
    count = None if length is None else int(np.asarray(length).reshape(()))
    site.room((*x.shape[:axis], count or x.shape[axis], *x.shape[axis + 1 :], 2), x.dtype)
    if inverse and half:
        y = jnp.fft.irfft(_complex(x), count, axis=axis)[..., None]
    elif half:
        y = _parts(jnp.fft.rfft(x[..., 0].astype(jnp.float32), count, axis=axis))
    else:
        y = _parts((jnp.fft.ifft if inverse else jnp.fft.fft)(_complex(x), count, axis=axis))
    return y.astype(x.dtype)


def stft(site: Site, x: Any, step: Any, window: Any = None, length: Any = None) -> Any:
    """The transforms ``[N, frames, bins, 2]`` of a signal's frames, each times a window."""
    [hop] = integers(step) if np.ndim(step) else [int(step)]
    if length is not None:
        [size] = integers(length) if np.ndim(length) else [int(length)]
    else:
        size = x.shape[1] if window is None else window.shape[0]
    if hop < 1 or size < 1 or size > x.shape[1]:
        raise ValueError(f"frames of {size} every {hop} of a signal of {x.shape[1]}")
    starts = np.arange(0, x.shape[1] - size + 1, hop)
    site.room((x.shape[0], len(starts), size, 2), x.dtype)
    frames = x.reshape(*x.shape[:2], -1)[:, starts[:, None] + np.arange(size)]
    if window is not None:
        if window.shape[0] != size:
            raise ValueError(f"a window of {window.shape[0]} for frames of {size}")
        frames = frames * jnp.asarray(window, x.dtype)[:, None]
    if site.get("onesided", 1):
        return _parts(jnp.fft.rfft(frames[..., 0].astype(jnp.float32), axis=2)).astype(x.dtype)
    return _parts(jnp.fft.fft(_complex(frames), axis=2)).astype(x.dtype)


def mel_weights(site: Site, bands: Any, length: Any, rate: Any, low: Any, high: Any) -> Any:
    """Triangles ``[bins, bands]`` that are alike in mel; bins of a transform of such a length."""
    count, bins, rate = (int(np.asarray(one).reshape(())) for one in (bands, length, rate))
    ends = [2595 * np.log10(1 + float(np.asarray(one).reshape(())) / 700) for one in (low, high)]
    site.room((bins // 2 + 1, count), np.float32)
    mels = ends[0] + np.arange(count + 2) * ((ends[1] - ends[0]) / (count + 2))
    places = np.floor((bins + 1) * (700 * (10 ** (mels / 2595) - 1)) / rate).astype(int)
    left, middle, right = places[:-2], places[1:-1], places[2:]
    row = np.arange(bins // 2 + 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        rising = np.where((row >= left) & (row < middle), (row - left) / (middle - left), 0)
        falling = np.where((row >= middle) & (row < right), (right - row) / (right - middle), 0)
    weights = np.where(row == middle, 1.0, rising + falling)
    return weights.astype(dtype_of(site.get("output_datatype", 1)))


def _complex(x: Any) -> Any:
    """Of real and imaginary parts, or of real parts alone."""
    x = x.astype(jnp.float32)
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0] + 0j


def _parts(y: Any) -> Any:
    return jnp.stack([y.real, y.imag], axis=-1)


RULES: dict[str, Rule] = {
    "DFT": Rule(dft, host=(1, 2)),
    "MelWeightMatrix": Rule(mel_weights, host=(0, 1, 2, 3, 4), both=True),
    "STFT": Rule(stft, host=(1, 3)),
}
