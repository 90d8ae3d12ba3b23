"""The paper's Conv-4: as Conv-2, with two convolutions of 128 channels and a pool more."""

from archs.common import conv2


def build(channels, size, classes):
    return conv2.build(channels, size, classes, (64, 64, "M", 128, 128, "M"))
