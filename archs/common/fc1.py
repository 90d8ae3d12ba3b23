"""The paper's "Lenet", LeNet-300-100 (LeCun et al., 1998): hidden layers of 300 and 100 units."""

from torch import nn


def build(channels, size, classes):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size * size, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )
