"""MNIST (LeCun, Cortes, Burges): 60,000 + 10,000 handwritten digits, 28x28, grey."""

from torchvision.datasets import MNIST

CHANNELS, SIZE, CLASSES = 1, 28, 10
MEAN = (0.1307,)  # of the training images' pixels in 0..1
STD = (0.3081,)
VAL_SIZE = 5000
FILES = [f"MNIST/raw/{name.removesuffix('.gz')}" for name, _ in MNIST.resources]


def load(data_dir, train):
    data = MNIST(data_dir, train=train, download=True)
    return data.data.unsqueeze(1), data.targets
