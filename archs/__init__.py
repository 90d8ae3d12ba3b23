"""Datasets and architectures, found by their place: every folder beside `common` is a dataset, every file an architecture.

A file in `common` serves all datasets; a file in a dataset's folder serves that dataset alone and goes before one of the
same name in `common`. Nothing has to be registered.
"""

import contextlib
import importlib
import pkgutil
import traceback
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
    """The dataset's module, with CHANNELS, SIZE, CLASSES, MEAN, STD, VAL_SIZE, FILES and load.

    Raises ValueError where one of these is missing or cannot be.
    """
    module = _import(dataset)
    for name in ("CHANNELS", "SIZE", "CLASSES", "VAL_SIZE", "MEAN", "STD", "FILES", "load"):
        if not hasattr(module, name):
            raise ValueError(f"{module.__file__} has no {name}")
    for name, least in (("CHANNELS", 1), ("SIZE", 1), ("CLASSES", 1), ("VAL_SIZE", 0)):
        value = getattr(module, name)
        if type(value) is not int or value < least:
            raise ValueError(f"{module.__file__}: {name} must be a whole number, {least} or more, not {value!r}")
    for name, valid in (("MEAN", lambda value: 0 <= value <= 1), ("STD", lambda value: 0 < value <= 1)):
        values = getattr(module, name)
        numbers = isinstance(values, (tuple, list)) and all(isinstance(value, (int, float)) for value in values)
        if not numbers or len(values) != module.CHANNELS or not all(map(valid, values)):
            wanted = "one number for each channel, of pixels in 0..1" + (" and above 0" if name == "STD" else "")
            raise ValueError(f"{module.__file__}: {name} must have {wanted}, not {values!r}")
    if not isinstance(module.FILES, (list, tuple)) or not all(isinstance(name, str) for name in module.FILES):
        raise ValueError(f"{module.__file__}: FILES must be a list of names, not {module.FILES!r}")
    return module


def build(dataset, arch_type):
    """A new `arch_type` for images of `dataset`.

    Returns an nn.Module from normalised float images (N, C, H, W) to logits (N, classes).
    Raises ValueError where the architecture's file does not give one.
    """
    here = dataset if arch_type in _modules(dataset, packages=False) else "common"
    module, shape = _import(f"{here}.{arch_type}"), facts(dataset)
    if not callable(getattr(module, "build", None)):
        raise ValueError(f"{module.__file__} has no build(channels, size, classes)")
    try:
        with _mistakes(module):
            model = module.build(shape.CHANNELS, shape.SIZE, shape.CLASSES)
    except (MemoryError, _Mistake):
        raise
    except Exception as error:  # whatever the code of a network may raise
        raise ValueError(f"{module.__file__}: build fails: {one_line(error)}") from error
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"{module.__file__}: build must return an nn.Module, not {model!r}")
    return model


def load(dataset, data_dir, train):
    """The training or the test examples of `dataset` from `data_dir`, downloaded into it where they are missing.

    Returns uint8 images (N, C, H, W) and int64 labels (N,).
    Raises OSError where there is nothing to read, ValueError where the files hold something else than the dataset.
    """
    data = facts(dataset)
    wanted = f"in {Path(data_dir).resolve()}: {', '.join(data.FILES)}"
    try:
        with _mistakes(data):
            found = data.load(data_dir, train)
    except (PermissionError, MemoryError, _Mistake):
        raise
    except Exception as error:  # torchvision raises many kinds, down to AssertionError
        if all((Path(data_dir) / name).exists() for name in data.FILES):
            raise ValueError(f"{dataset} is damaged: delete and fetch again, {wanted} ({one_line(error)})") from error
        raise OSError(
            f"{dataset} is not here and cannot be downloaded. Put these files {wanted}; "
            f"or use --dataset=digits, which needs no download ({one_line(error)})"
        ) from error
    try:
        images, labels = map(torch.as_tensor, found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{data.__file__}: load must return two arrays, images and labels ({one_line(error)})") from error
    shape = (data.CHANNELS, data.SIZE, data.SIZE)
    if images.dtype != torch.uint8 or images.shape[1:] != shape:
        has = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape[1:])}"
        raise ValueError(f"{dataset} holds images of {has}, not uint8 of shape {shape}: {wanted}")
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        has = f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
        raise ValueError(f"{dataset} holds labels of {has}, not whole numbers of shape (N,): {wanted}")
    if not len(images) == len(labels) > 0:
        raise ValueError(f"{dataset} holds {len(images)} images and {len(labels)} labels: {wanted}")
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= data.CLASSES:
        has = f"labels in {int(labels.min())}..{int(labels.max())}, not in 0..{data.CLASSES - 1}"
        raise ValueError(f"{dataset} holds {has}: {wanted}")
    return images.contiguous(), labels


class _Mistake(ValueError):
    """A mistake in the code of a dataset or an architecture."""


@contextlib.contextmanager
def _mistakes(module):
    """Say in one line where a module's own code is wrong; what others raise in it passes, and what it raises on purpose."""
    try:
        yield
    except (NameError, AttributeError, TypeError, LookupError, ArithmeticError, ImportError, SyntaxError) as error:
        path = str(getattr(module, "__file__", module))
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        if isinstance(error, (NameError, ImportError, SyntaxError)) or frames[-1].filename in (path, __file__):
            raise _Mistake(f"{path}{f', line {lines[-1]}' if lines else ''}: {one_line(error)}") from error
        raise


def _import(name):
    """A module of this package, or a ValueError."""
    path = Path(__file__).parent / f"{name.replace('.', '/')}"
    with _mistakes(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")):
        return importlib.import_module(f"{__name__}.{name}")


def one_line(error):
    """An exception in a line: its type and what it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
