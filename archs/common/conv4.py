"""The paper's Conv-4: Conv-2 with two more convolutions, of 128 channels, and another pool."""

from archs.common import conv2

PAPER = f"{conv2.PAPER} --lr=3e-4 --max_iter=25000"


def build(channels, size, classes):
    return conv2.build(channels, size, classes, (64, 64, "M", 128, 128, "M"))
