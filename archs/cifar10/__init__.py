"""CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour photographs, 32x32, 10 classes."""

from torch import from_numpy
from torchvision.datasets import CIFAR10

CHANNELS, SIZE, CLASSES = 3, 32, 10
MEAN = (0.4914, 0.4822, 0.4465)  # of the training images' pixels in 0..1
STD = (0.2470, 0.2435, 0.2616)
VAL_SIZE = 5000
PARTS = dict(CIFAR10.train_list + CIFAR10.test_list)
FILES = [f"{CIFAR10.base_folder}/{name}" for name in (*PARTS, CIFAR10.meta["filename"])]


def load(data_dir, train):
    # torchvision reads pickles here, but only files with the published checksums.
    data = CIFAR10(data_dir, train=train, download=True)
    return from_numpy(data.data).permute(0, 3, 1, 2), data.targets
