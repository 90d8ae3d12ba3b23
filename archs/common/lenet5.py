"""LeNet-5 (LeCun, Bottou, Bengio, Haffner, 1998).

Unlike the original, its second convolution has all connections and its output is a linear layer.
"""

from torch import nn


def build(channels, size, classes):
    pad = max(0, 32 - size) // 2  # the network is for 32x32
    # Two 5x5 convolutions without padding, each followed by a pool that halves the image.
    side = ((size + 2 * pad - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=pad),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, classes),
    )
