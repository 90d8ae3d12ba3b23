"""Handwritten digits (UCI): 1,797 real 8x8 images, stored in this folder, without a download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). `digits.csv.gz` is the unchanged file of
scikit-learn: 64 values in 0..16 and the label on each line. `load` scales the values to 0..255 and
the images to 28x28: each pixel is repeated three times in both directions, with a border of two.
"""

from pathlib import Path

import numpy as np

CHANNELS, SIZE, CLASSES = 1, 28, 10
MEAN = (0.2244,)  # of the training images' pixels in 0..1
STD = (0.3488,)
VAL_SIZE = 200
FILES = [str(Path(__file__).with_name("digits.csv.gz"))]
TRAIN_SIZE = 1437  # the first 80%; the dataset has no official split


def load(data_dir, train):
    table = np.loadtxt(FILES[0], delimiter=",")
    part = table[:TRAIN_SIZE] if train else table[TRAIN_SIZE:]
    images = (part[:, :-1] * 255 / 16).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    images = np.pad(images.repeat(3, axis=2).repeat(3, axis=3), [(0, 0), (0, 0), (2, 2), (2, 2)])
    return images, part[:, -1].astype(np.int64)
