"""Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017): 60,000 + 10,000 images of clothes, 28x28, grey."""

from torchvision.datasets import FashionMNIST

CHANNELS, SIZE, CLASSES = 1, 28, 10
MEAN = (0.2860,)  # of the training images' pixels in 0..1
STD = (0.3530,)
VAL_SIZE = 5000
FILES = [f"FashionMNIST/raw/{name.removesuffix('.gz')}" for name, _ in FashionMNIST.resources]


def load(data_dir, train):
    data = FashionMNIST(data_dir, train=train, download=True)
    return data.data.unsqueeze(1), data.targets
