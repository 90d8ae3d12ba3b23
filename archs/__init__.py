"""Datasets and architectures, found by their place: every folder beside `common` is a dataset, every file an architecture.

A file in `common` serves all datasets; a file in a dataset's folder serves that dataset alone and goes before one of the
same name in `common`. Nothing has to be registered.
"""

import importlib
import pkgutil
from pathlib import Path

import torch


def _modules(folder, packages):
    found = pkgutil.iter_modules([str(Path(__file__).parent / folder)])
    return sorted(module.name for module in found if module.ispkg == packages)


def datasets():
    """Names of the datasets."""
    return [name for name in _modules(".", packages=True) if name != "common"]


def architectures(dataset=None):
    """Names of the architectures that `dataset` can use; of all architectures without one."""
    folders = ["common", *(datasets() if dataset is None else [dataset])]
    return sorted({name for folder in folders for name in _modules(folder, packages=False)})


def facts(dataset):
    """The dataset's module, with CHANNELS, SIZE, CLASSES, MEAN, STD, VAL_SIZE, FILES and load."""
    return importlib.import_module(f"{__name__}.{dataset}")


def build(dataset, arch_type):
    """A new `arch_type` for images of `dataset`.

    Returns an nn.Module from normalised float images (N, C, H, W) to logits (N, classes).
    """
    here = dataset if arch_type in _modules(dataset, packages=False) else "common"
    module = importlib.import_module(f"{__name__}.{here}.{arch_type}")
    shape = facts(dataset)
    return module.build(shape.CHANNELS, shape.SIZE, shape.CLASSES)


def load(dataset, data_dir, train):
    """The training or the test examples of `dataset` from `data_dir`, downloaded into it where they are missing.

    Returns uint8 images (N, C, H, W) and int64 labels (N,).
    Raises OSError where there is nothing to read, ValueError where the files hold something else than the dataset.
    """
    data = facts(dataset)
    wanted = f"in {Path(data_dir).resolve()}: {', '.join(data.FILES)}"
    try:
        images, labels = data.load(data_dir, train)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # torchvision raises many kinds, down to AssertionError
        if all((Path(data_dir) / name).exists() for name in data.FILES):
            raise ValueError(f"{dataset} is damaged: delete and fetch again, {wanted} ({_line(error)})") from error
        raise OSError(
            f"{dataset} is not here and cannot be downloaded. Put these files {wanted}; "
            f"or use --dataset=digits, which needs no download ({_line(error)})"
        ) from error
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    if images.dtype != torch.uint8 or images.shape[1:] != (data.CHANNELS, data.SIZE, data.SIZE):
        raise ValueError(f"{dataset} holds images of {images.dtype} and shape {tuple(images.shape[1:])}: {wanted}")
    if not len(images) == len(labels) > 0 or labels.min() < 0 or labels.max() >= data.CLASSES:
        raise ValueError(f"{dataset} has not one label in 0..{data.CLASSES - 1} for each image: {wanted}")
    return images.contiguous(), labels.long()


def _line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
