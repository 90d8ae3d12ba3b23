"""The paper's Conv-2, a small VGG: two 3x3 convolutions, a pool, and two hidden layers of 256."""

from torch import nn
from torchvision.models import vgg

# What --paper sets.
PAPER = """
--dataset=cifar10 --optimizer=adam --lr=2e-4 --batch_size=60
--max_iter=20000 --eval_iter=100 --valid_freq=1000
--prune_percent=20 --prune_percent_conv=10 --prune_percent_output=10 --prune_iterations=20
"""


def build(channels, size, classes, convolutions=(64, 64, "M")):
    """Return the network.

    Conv-4 and Conv-6 differ only in `convolutions`: their numbers of channels in order, and "M" for
    a pool that halves the image.
    """
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
