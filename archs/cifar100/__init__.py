"""CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 colour photographs, 32x32, 100 classes."""

from torch import from_numpy
from torchvision.datasets import CIFAR100

CHANNELS, SIZE, CLASSES = 3, 32, 100
MEAN = (0.5071, 0.4865, 0.4409)  # of the training images' pixels in 0..1
STD = (0.2673, 0.2564, 0.2762)
VAL_SIZE = 5000
PARTS = dict(CIFAR100.train_list + CIFAR100.test_list)
FILES = [f"{CIFAR100.base_folder}/{name}" for name in (*PARTS, CIFAR100.meta["filename"])]


def load(data_dir, train):
    # torchvision reads pickles here, but only files with the published checksums.
    data = CIFAR100(data_dir, train=train, download=True)
    return from_numpy(data.data).permute(0, 3, 1, 2), data.targets
