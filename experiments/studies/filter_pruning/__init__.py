"""Filter pruning of a published ResNet-20."""
