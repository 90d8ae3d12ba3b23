"""AlexNet (Krizhevsky et al., 2012) in the usual variant for 32x32: 3x3 convolutions, 2x2 pools."""

from torch import nn


def build(channels, size, classes):
    # Smaller images are padded to 32x32, so that 2x2 pixels remain after the last pool.
    pad = 1 + max(0, 32 - size) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, stride=2, padding=pad),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(256 * 2 * 2, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, classes),
    )
