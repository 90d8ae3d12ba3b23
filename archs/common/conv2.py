"""The paper's Conv-2: two 3x3 convolutions and a pool, a small VGG, with two hidden layers of 256 units."""

from torch import nn
from torchvision.models import vgg


def build(channels, size, classes, convolutions=(64, 64, "M")):
    """Conv-4 and Conv-6 differ in `convolutions`, their channels in turn, with "M" for a pool that halves the image."""
    layers = vgg.make_layers(convolutions)
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    side = size >> convolutions.count("M")
    return nn.Sequential(
        layers,
        nn.Flatten(),
        nn.Linear(convolutions[-2] * side * side, 256),
        nn.ReLU(),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )
