"""The paper's "Lenet": fully connected, 300 and 100 hidden units (LeNet-300-100 of LeCun et al., 1998)."""

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
