"""Reference models in Flax Linen: plain, readable, with configurable widths."""

from lepton_jax.models.cnn import CNN
from lepton_jax.models.lenet5 import LeNet5
from lepton_jax.models.lenet_300_100 import LeNet300
from lepton_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from lepton_jax.models.resnet_cifar import ResNetCifar
from lepton_jax.models.torch_import import load_resnet20, load_torch_resnet
from lepton_jax.models.transformer import Block, Transformer, attend, rotate

__all__ = [
    "CNN",
    "BasicBlock",
    "Block",
    "Bottleneck",
    "LeNet5",
    "LeNet300",
    "ResNet",
    "ResNetCifar",
    "Transformer",
    "attend",
    "load_resnet20",
    "load_torch_resnet",
    "rotate",
]
