"""The paper's Conv-6: Conv-4 with two more convolutions, of 256 channels, and another pool.

For 32x32 images it has 2.26 million weights; the paper says 1.7 million. Conv-2 and Conv-4, with
the same padding, have as many as in the paper.
"""

from archs.common import conv2

PAPER = f"{conv2.PAPER} --lr=3e-4 --max_iter=30000 --prune_percent_conv=15"


def build(channels, size, classes):
    return conv2.build(channels, size, classes, (64, 64, "M", 128, 128, "M", 256, 256, "M"))
