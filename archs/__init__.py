"""Datasets and architectures, found by their place: nothing has to be registered.

Every folder except `common` is a dataset. Every file in `common` is an architecture for all
datasets. A file in a dataset's folder is an architecture for that dataset only, and takes
precedence over a file of the same name in `common`.
"""

import contextlib
import importlib
import pkgutil
import sys
from numbers import Integral
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

FACTS = ("CHANNELS", "SIZE", "CLASSES", "VAL_SIZE", "MEAN", "STD", "FILES", "load")


def datasets():
    """Return the names of all datasets."""
    return [name for name in _modules(".", packages=True) if name != "common"]


def architectures(dataset=None):
    """Return the names of the architectures for a dataset, or of all architectures."""
    folders = ["common"]
    if dataset is None:
        folders += datasets()
    else:
        folders.append(dataset)
    return sorted({name for folder in folders for name in _modules(folder, packages=False)})


def _modules(folder, packages):
    modules = pkgutil.iter_modules([str(Path(__file__).parent / folder)])
    return sorted(module.name for module in modules if module.ispkg == packages)


def facts(dataset):
    """Return a dataset's module, which has the names in FACTS.

    Raises ValueError if a name is missing, or if MEAN, STD or VAL_SIZE is impossible.
    """
    module = importlib.import_module(f"{__name__}.{dataset}")
    for name in FACTS:
        if not hasattr(module, name):
            raise ValueError(f"{module.__file__} has no {name}")

    mean = np.array(module.MEAN)
    std = np.array(module.STD)
    if mean.shape != (module.CHANNELS,) or not ((mean >= 0) & (mean <= 1)).all():
        raise ValueError(
            f"{module.__file__}: MEAN must have one number in [0, 1] per channel, not {module.MEAN}"
        )
    if std.shape != (module.CHANNELS,) or not ((std > 0) & (std <= 1)).all():
        raise ValueError(
            f"{module.__file__}: STD must have one number in (0, 1] per channel, not {module.STD}"
        )
    if not isinstance(module.VAL_SIZE, Integral) or module.VAL_SIZE < 0:
        raise ValueError(
            f"{module.__file__}: VAL_SIZE must be a whole number in [0, inf), not {module.VAL_SIZE}"
        )
    return module


def build(dataset, arch_type):
    """Return a new network for a dataset, an nn.Module.

    It maps normalized float images (N, C, H, W) to logits (N, classes).
    """
    data = facts(dataset)
    return architecture(dataset, arch_type).build(data.CHANNELS, data.SIZE, data.CLASSES)


def initializer(dataset, arch_type):
    """Return the function initialize(model) of an architecture's file; None if it has none.

    It draws the weights of a network from torch's generator, in place.
    """
    return getattr(architecture(dataset, arch_type), "initialize", None)


def paper_flags(dataset, arch_type):
    """Return the paper's settings in an architecture's file, a list of flags; [] if it has none."""
    return getattr(architecture(dataset, arch_type), "PAPER", "").split()


def layer_rates(dataset, arch_type):
    """Return the pruning rates in an architecture's file, {parameter name: percent}.

    The names are patterns of fnmatch, of which the last one that matches counts. Raises ValueError
    if a rate is impossible.
    """
    module = architecture(dataset, arch_type)
    rates = getattr(module, "PRUNE_PERCENT", {})
    if not isinstance(rates, dict) or not all(
        isinstance(name, str) and isinstance(rate, int | float) and 0 <= rate < 100
        for name, rate in rates.items()
    ):
        raise ValueError(
            f"{module.__file__}: PRUNE_PERCENT must be {{parameter name: percent in [0, 100)}}, not"
            f" {rates}"
        )
    return {name: float(rate) for name, rate in rates.items()}


def architecture(dataset, arch_type):
    """Return the module of an architecture, which has the function `build`."""
    folder = dataset if arch_type in _modules(dataset, packages=False) else "common"
    return importlib.import_module(f"{__name__}.{folder}.{arch_type}")


def load(dataset, data_dir, train):
    """Return a dataset's training or test examples: uint8 images (N, C, H, W), int64 labels (N,).

    They are read from `data_dir`, and downloaded there first if they are missing. Raises OSError
    if they are missing and cannot be downloaded, and ValueError if they are not as expected.
    """
    data = facts(dataset)
    files = _files(dataset, data_dir)
    examples = _read(dataset, data_dir, train)
    shape = (data.CHANNELS, data.SIZE, data.SIZE)
    try:
        images, labels = map(torch.as_tensor, examples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{data.__file__}: load must return uint8 images of shape (N, {data.CHANNELS}, "
            f"{data.SIZE}, {data.SIZE}) and integer labels of shape (N,), as two NumPy arrays or "
            f"tensors ({one_line(error)})"
        ) from error
    if images.dtype != torch.uint8 or images.shape[1:] != shape:
        raise ValueError(
            f"{dataset} has images of {_name(images.dtype)} of shape {tuple(images.shape[1:])}, "
            f"not uint8 of shape {shape}, {files}"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"{dataset} has labels of {_name(labels.dtype)}, not integers, {files}")
    labels = labels.long()
    if labels.shape != (len(images),) or len(labels) == 0:
        raise ValueError(
            f"{dataset} has {len(images)} images and labels of shape {tuple(labels.shape)}, {files}"
        )
    if labels.min() < 0 or labels.max() >= data.CLASSES:
        raise ValueError(
            f"{dataset} has labels in {int(labels.min())}..{int(labels.max())}, "
            f"not in 0..{data.CLASSES - 1}, {files}"
        )
    return images.contiguous(), labels


def _files(dataset, data_dir):
    """Return in words where the files of a dataset belong."""
    return f"in {Path(data_dir).resolve()}: {', '.join(facts(dataset).FILES)}"


def _is_complete(dataset, data_dir):
    """Return whether all files of a dataset exist."""
    return all((Path(data_dir) / name).exists() for name in facts(dataset).FILES)


def _read(dataset, data_dir, train):
    """Return what a dataset's own `load` returns. Raises OSError and ValueError as `load` does."""
    try:
        with _download_lock(dataset, data_dir):
            return facts(dataset).load(data_dir, train)
    except (MemoryError, NameError, AttributeError, TypeError, ImportError):
        raise  # these say nothing about the files
    except Exception as error:  # torchvision raises many types, even AssertionError
        files, reason = _files(dataset, data_dir), one_line(error)
        if not _is_complete(dataset, data_dir):
            raise OSError(
                f"{dataset} is missing and cannot be downloaded. Put these files {files}; "
                f"or use --dataset=digits, which needs no download ({reason})"
            ) from error
        if isinstance(error, PermissionError):
            raise
        raise ValueError(
            f"{dataset} cannot be read from these files {files} ({reason}). "
            "Replace them if they are damaged"
        ) from error


@contextlib.contextmanager
def _download_lock(dataset, data_dir):
    """Let one process download a dataset, while others wait.

    There is no lock if the dataset is complete, because the folder may be read-only then.
    """
    path = Path(data_dir, f".{dataset}.lock")
    complete = _is_complete(dataset, data_dir)
    if complete and not path.exists():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(
            f"waiting for another process to download {dataset}; if there is none, delete {path}",
            file=sys.stderr,
        )
        lock.acquire()
    except OSError:
        if not complete:
            raise
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # while it exists, a file of the dataset may be incomplete
            lock.release()


def load_split(dataset, data_dir, seed=0, val_size=None):
    """Return the training, validation and test examples of a run, three pairs as `load` returns.

    `seed` and `val_size` are those of the run; None is the dataset's validation size. Raises what
    `load` and `split` raise.
    """
    if val_size is None:
        val_size = int(facts(dataset).VAL_SIZE)
    train = load(dataset, data_dir, train=True)
    test = load(dataset, data_dir, train=False)
    return split(train, test, seed, val_size)


def split(train, test, seed, val_size):
    """Return the training, validation and test examples of a run, from those of the dataset.

    All are pairs of images and labels. The seed chooses `val_size` training examples for
    validation; if it is 0, the test examples serve for it. Raises ValueError if no training
    examples are left.
    """
    images, labels = train
    if not 0 <= val_size < len(labels):
        raise ValueError(f"val_size must be in [0, {len(labels)}), not {val_size}")
    sequence = np.random.SeedSequence(seed)
    generator = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
    order = torch.randperm(len(labels), generator=generator)  # on the CPU: the same everywhere
    kept, held_out = order.to(labels.device).split([len(labels) - val_size, val_size])
    val = (images[held_out], labels[held_out]) if val_size else test
    return (images[kept], labels[kept]), val, test


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def one_line(error):
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
