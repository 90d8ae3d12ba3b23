"""The paper's Conv-6: as Conv-4, with two convolutions of 256 channels and a pool more.

It has 2.26 million weights at 32x32, by the same padding as Conv-2 and Conv-4, whose numbers are the paper's; the paper
gives 1.7 million.
"""

from archs.common import conv2


def build(channels, size, classes):
    return conv2.build(channels, size, classes, (64, 64, "M", 128, 128, "M", 256, 256, "M"))
