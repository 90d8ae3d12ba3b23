"""Datasets and architectures, found by their place: every folder beside `common` is a dataset, every file an architecture.

A file in `common` serves all datasets; a file in a dataset's folder serves that dataset alone and goes before one of the
same name in `common`. Nothing has to be registered.
"""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
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
    """The dataset's module, with CHANNELS, SIZE, CLASSES, MEAN, STD, VAL_SIZE, FILES and load.

    Raises ValueError if one is missing, or if MEAN, STD or VAL_SIZE cannot be.
    """
    module = importlib.import_module(f"{__name__}.{dataset}")
    for name in ("CHANNELS", "SIZE", "CLASSES", "VAL_SIZE", "MEAN", "STD", "FILES", "load"):
        if not hasattr(module, name):
            raise ValueError(f"{module.__file__} has no {name}")
    mean, std = np.array(module.MEAN), np.array(module.STD)
    if mean.shape != (module.CHANNELS,) or not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(f"{module.__file__}: MEAN must have one number in [0, 1] per channel, not {module.MEAN}")
    if std.shape != (module.CHANNELS,) or not ((std > 0) & (std <= 1)).all():
        raise ValueError(f"{module.__file__}: STD must have one number in (0, 1] per channel, not {module.STD}")
    if not isinstance(module.VAL_SIZE, int) or module.VAL_SIZE < 0:
        raise ValueError(f"{module.__file__}: VAL_SIZE must be a whole number in [0, inf), not {module.VAL_SIZE}")
    return module


def build(dataset, arch_type):
    """A new `arch_type` for images of `dataset`: an nn.Module from normalised float images (N, C, H, W) to logits."""
    folder = dataset if arch_type in _modules(dataset, packages=False) else "common"
    module, shape = importlib.import_module(f"{__name__}.{folder}.{arch_type}"), facts(dataset)
    return module.build(shape.CHANNELS, shape.SIZE, shape.CLASSES)


def load(dataset, data_dir, train):
    """The training or the test examples of `dataset` from `data_dir`, downloaded into it where they are missing.

    Returns uint8 images (N, C, H, W) and int64 labels (N,).
    Raises OSError where there is nothing to read, ValueError where the files hold something else than the dataset.
    """
    data = facts(dataset)
    wanted = f"in {Path(data_dir).resolve()}: {', '.join(data.FILES)}"
    try:
        found = data.load(data_dir, train)
    except (PermissionError, MemoryError, NameError, AttributeError, TypeError, ImportError):
        raise  # which say nothing of the files
    except Exception as error:  # torchvision raises many kinds, down to AssertionError
        if all((Path(data_dir) / name).exists() for name in data.FILES):
            raise ValueError(f"{dataset} is damaged: delete and fetch again, {wanted} ({one_line(error)})") from error
        raise OSError(
            f"{dataset} is not here and cannot be downloaded. Put these files {wanted}; "
            f"or use --dataset=digits, which needs no download ({one_line(error)})"
        ) from error
    images, labels = map(torch.as_tensor, found)
    shape = (data.CHANNELS, data.SIZE, data.SIZE)
    if images.dtype != torch.uint8 or images.shape[1:] != shape:
        has = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape[1:])}"
        raise ValueError(f"{dataset} holds images of {has}, not uint8 of shape {shape}: {wanted}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{dataset} holds labels of {str(labels.dtype).removeprefix('torch.')}, not integers: {wanted}")
    if labels.shape != (len(images),) or len(labels) == 0:
        raise ValueError(f"{dataset} holds {len(images)} images and labels of shape {tuple(labels.shape)}: {wanted}")
    if labels.min() < 0 or labels.max() >= data.CLASSES:
        has = f"labels in {int(labels.min())}..{int(labels.max())}, not in 0..{data.CLASSES - 1}"
        raise ValueError(f"{dataset} holds {has}: {wanted}")
    return images.contiguous(), labels.long()


def one_line(error):
    """An exception in a line: its type and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
