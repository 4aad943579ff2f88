"""Reference models in Flax Linen: plain, readable, with configurable widths."""

from typing import Any

from lepton_jax.models.attention import Cache, attend, attend_to, rotate
from lepton_jax.models.bag_of_embeddings import BagOfEmbeddings
from lepton_jax.models.beam_search import beam_search
from lepton_jax.models.block import Block
from lepton_jax.models.chest_net import ChestNet
from lepton_jax.models.cnn import CNN
from lepton_jax.models.detector import Detector
from lepton_jax.models.generate import generate
from lepton_jax.models.image_and_sound import ImageAndSound
from lepton_jax.models.image_and_text import ImageAndText
from lepton_jax.models.lenet5 import LeNet5
from lepton_jax.models.lenet_300_100 import LeNet300
from lepton_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from lepton_jax.models.resnet_cifar import ResNetCifar
from lepton_jax.models.rms_norm import RMSNorm
from lepton_jax.models.rope import DynamicRope, LinearRope, Llama3Rope, Rope, YarnRope
from lepton_jax.models.text_classifier import TextClassifier
from lepton_jax.models.tokens import as_tokens, mean_of_words
from lepton_jax.models.transformer import Transformer
from lepton_jax.models.translator import Source, Translator
from lepton_jax.models.two_towers import TwoTowers
from lepton_jax.models.window_autoencoder import WindowAutoencoder

__all__ = [
    "CNN",
    "BagOfEmbeddings",
    "BasicBlock",
    "Block",
    "Bottleneck",
    "Cache",
    "ChestNet",
    "Detector",
    "DynamicRope",
    "ImageAndSound",
    "ImageAndText",
    "LeNet5",
    "LeNet300",
    "LinearRope",
    "Llama3Rope",
    "RMSNorm",
    "ResNet",
    "ResNetCifar",
    "Rope",
    "Source",
    "TextClassifier",
    "Transformer",
    "Translator",
    "TwoTowers",
    "WindowAutoencoder",
    "YarnRope",
    "as_tokens",
    "attend",
    "attend_to",
    "beam_search",
    "generate",
    "mean_of_words",
    "rotate",
]


def __getattr__(name: str) -> Any:
    """Reading the weights of others has a package of its own; its names stay here too."""
    if name in ("load_resnet20", "load_torch_resnet"):
        from lepton_jax import interchange

        return getattr(interchange, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
