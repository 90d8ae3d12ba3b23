"""Every architecture on every dataset; the datasets' files in their formats, good and bad."""

import errno
import gzip
import pickle
import struct
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import cifar, mnist

import archs
import main
import utils
from conftest import Mark, same, small_data, small_network


def pairs(*facts_that_differ):
    """Return (dataset, architecture), one for each file and each combination of these facts."""
    found = {}
    for dataset in archs.datasets():
        facts, own = archs.facts(dataset), archs._modules(dataset, packages=False)
        for arch_type in archs.architectures(dataset):
            folder = dataset if arch_type in own else "common"
            shape = (getattr(facts, name) for name in facts_that_differ)
            found.setdefault((folder, arch_type, *shape), (dataset, arch_type))
    return list(found.values())


def test_the_datasets_and_architectures_of_the_readme_are_found():
    assert set(archs.datasets()) >= {"mnist", "fashionmnist", "cifar10", "cifar100", "digits"}
    assert set(archs.architectures()) >= {
        "fc1",
        "lenet5",
        "alexnet",
        "vgg16",
        "resnet8",
        "resnet18",
        "densenet121",
    }


@pytest.mark.parametrize(("dataset", "arch_type"), pairs("CHANNELS", "SIZE", "CLASSES"))
def test_logits_have_the_shape_of_the_dataset(dataset, arch_type):
    facts = archs.facts(dataset)
    images = torch.rand(2, facts.CHANNELS, facts.SIZE, facts.SIZE)
    assert archs.build(dataset, arch_type)(images).shape == (2, facts.CLASSES)


def test_resnet8_has_the_parameters_that_its_file_states():
    model = archs.build("cifar10", "resnet8")
    assert sum(parameter.numel() for parameter in model.parameters()) == 78_042


@pytest.mark.parametrize(("dataset", "arch_type"), pairs("CHANNELS", "SIZE"))
def test_train_prune_reset_train(dataset, arch_type, small_args, train_round):
    facts = archs.facts(dataset)
    args = small_args(dataset=dataset, arch_type=arch_type, batch_size=4, end_iter=1)
    data = small_data(16, facts.CHANNELS, facts.SIZE, facts.CLASSES)
    model = main.new_model(args, 0)
    logits = model(data.normalize(data.test[0]))
    assert logits.dtype == torch.float32
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = main.new_state(args, model)

    for _ in range(2):
        masks = utils.snapshot(state.masks)
        train_round(args, state, data)
        assert np.isfinite(utils.by_epoch(state.rows[-1], "train_loss")).all()
        for name, weight in main.prunable(model).items():
            assert (weight != initial[name])[masks[name]].any(), f"{name} did not train"
            assert not weight[~masks[name]].any()
        magnitudes = {name: weight.detach().abs() for name, weight in main.prunable(model).items()}
        pruned = main.prune(magnitudes, masks, args.prune_percent)
        for name, mask in pruned.items():
            alive = int(masks[name].sum())
            assert mask.sum() == alive - round(0.2 * alive)
        main.reset(args, state, pruned)
        for name, tensor in model.state_dict().items():
            assert torch.equal(
                tensor, initial[name] * pruned[name] if name in pruned else initial[name]
            )


@pytest.mark.parametrize("size", [28, 32, 40, 64])
@pytest.mark.parametrize("arch_type", archs.architectures("cifar10"))
def test_other_image_sizes_work(arch_type, size, monkeypatch):
    facts = archs.facts("cifar10")
    monkeypatch.setattr(facts, "SIZE", size)
    assert archs.build("cifar10", arch_type)(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_fc1_is_the_papers_lenet():
    assert [p.numel() for p in main.prunable(archs.build("mnist", "fc1")).values()] == [
        784 * 300,
        300 * 100,
        1000,
    ]


def test_a_file_in_the_datasets_folder_takes_precedence(tmp_path, monkeypatch):
    (tmp_path / "fc1.py").write_text(
        "from torch import nn\ndef build(*shape): return nn.Identity()\n"
    )
    (tmp_path / "tiny.py").write_text(
        "from torch import nn\ndef build(*shape): return nn.Flatten()\n"
    )
    folder = archs._modules  # the names in a folder, and the folder that Python imports them from
    monkeypatch.setattr(
        archs,
        "_modules",
        lambda name, packages: ["fc1", "tiny"] if name == "digits" else folder(name, packages),
    )
    monkeypatch.setattr(archs.facts("digits"), "__path__", [str(tmp_path)])
    assert type(archs.build("digits", "fc1")) is torch.nn.Identity
    assert type(archs.build("mnist", "fc1")) is torch.nn.Sequential
    assert "tiny" in archs.architectures("digits")
    assert "tiny" not in archs.architectures("mnist")


# Files


def test_digits_are_those_of_scikit_learn():
    parts = [archs.load("digits", "nowhere", train) for train in (True, False)]
    assert [len(labels) for _, labels in parts] == [1437, 360]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert images.shape == (1797, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    first = images[0, 0, 2:26:3, 2:26:3] // 15  # the 8x8 values in 0..16, up to rounding
    assert first[0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert not images[:, :, :2].any()
    assert not images[:, :, :, -2:].any()


def write_mnist(folder, n=12, size=28, labels=None, compress=False):
    """Write the four IDX files of MNIST; return the training images and labels."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part in ("t10k", "train"):
        images = random.integers(256, size=(n, size, size), dtype=np.uint8)
        numbers = (random.integers(10, size=n) if labels is None else np.full(n, labels)).astype(
            np.uint8
        )
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x803, n, size, size) + images.tobytes()
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 0x801, n) + numbers.tobytes()
        )
    return images, numbers


@pytest.mark.parametrize(
    ("dataset", "name"), [("mnist", "MNIST"), ("fashionmnist", "FashionMNIST")]
)
def test_idx_files_are_read_as_they_are(dataset, name, tmp_path):
    expected, numbers = write_mnist(tmp_path / name / "raw")
    images, labels = archs.load(dataset, tmp_path, train=True)
    assert np.array_equal(images[:, 0], expected)
    assert np.array_equal(labels, numbers)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert not torch.equal(images, archs.load(dataset, tmp_path, train=False)[0])


def test_missing_files_are_named_with_an_alternative(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried ...")

    for module, dataset in (
        (mnist, "mnist"),
        (mnist, "fashionmnist"),
        (cifar, "cifar10"),
        (cifar, "cifar100"),
    ):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)
        with pytest.raises(OSError, match="--dataset=digits") as error:
            archs.load(dataset, tmp_path, train=True)
        assert str(tmp_path) in str(error.value)
        assert all(file in str(error.value) for file in archs.facts(dataset).FILES)
        assert "\n" not in str(error.value)


SLOW = """
import time
from pathlib import Path

import torch

CHANNELS, SIZE, CLASSES, VAL_SIZE = 1, 28, 10, 1
MEAN, STD = (0.5,), (0.25,)
FILES = ["first", "last"]


def load(data_dir, train):
    first, last = (Path(data_dir, name) for name in FILES)
    if not last.exists():
        first.touch(exist_ok=False)
        last.touch(exist_ok=False)
        time.sleep(0.5)
        last.write_text("whole")
    assert last.read_text() == "whole"
    return torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
"""


def test_one_process_downloads_and_the_others_wait(own, tmp_path, capsys):
    """They wait even if all files are there, of which the last is not complete yet."""
    (own / "slow").mkdir()
    (own / "slow/__init__.py").write_text(SLOW)
    archs.facts("slow")
    folder = tmp_path / "data"
    folder.mkdir()

    def load():
        return len(archs.load("slow", folder, train=True)[1])

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(load)
        while not (folder / "last").exists() and not first.done():
            time.sleep(0.01)
        others = [pool.submit(load) for _ in range(3)]
        assert [result.result() for result in (first, *others)] == [2] * 4
    note = f"waiting for another process to download slow; if there is none, delete {folder}/.slow"
    assert capsys.readouterr().err.count(note) == 3
    assert {path.name for path in folder.iterdir()} == {"first", "last"}


def test_a_complete_dataset_needs_no_lock(tmp_path, monkeypatch):
    """Its folder may be read-only."""
    write_mnist(tmp_path / "MNIST/raw")
    monkeypatch.setattr(archs, "FileLock", None)
    assert len(archs.load("mnist", tmp_path, train=True)[1])


def test_a_complete_dataset_is_read_even_if_a_left_lock_cannot_be_taken(tmp_path, monkeypatch):
    """As in a folder that has become read-only."""
    write_mnist(tmp_path / "MNIST/raw")
    (tmp_path / ".mnist.lock").touch()

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(archs.FileLock, "acquire", refuse)
    assert len(archs.load("mnist", tmp_path, train=True)[1])
    assert (tmp_path / ".mnist.lock").exists(), "another user may hold it"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    """The error is simulated, because root may write anywhere."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archs, "FileLock", refuse)
    with pytest.raises(OSError, match=r"mnist is missing and cannot .*Permission denied"):
        archs.load("mnist", tmp_path, train=True)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    write_mnist(tmp_path / "MNIST/raw")
    monkeypatch.setattr(archs.facts("mnist"), "load", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        archs.load("mnist", tmp_path, train=True)


def test_damaged_idx_files_are_reported(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder)
    file = folder / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    for content in (
        b"",
        whole[:10],
        whole[:-1],
        whole + b"0",
        b"\0" * len(whole),
        gzip.compress(whole),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="MNIST/raw/train-images-idx3-ubyte"):
            archs.load("mnist", tmp_path, train=True)


@pytest.mark.parametrize("wrong", [{"size": 8}, {"labels": 10}, {"n": 0}])
def test_files_of_another_dataset_are_refused(wrong, tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw", **wrong)
    with pytest.raises(ValueError, match="MNIST/raw/train-images-idx3-ubyte"):
        archs.load("mnist", tmp_path, train=True)


def write_cifar(folder, dataset, n=10):
    """Write CIFAR's pickled batches: rows of 1024 red, 1024 green and 1024 blue values."""
    facts, random = archs.facts(dataset), np.random.default_rng(0)
    label = "labels" if dataset == "cifar10" else "fine_labels"
    parts = {}
    for name in facts.FILES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = random.integers(256, size=(n, 3072), dtype=np.uint8)
        labels = random.integers(facts.CLASSES, size=n).tolist()
        path.write_bytes(
            pickle.dumps({"data": rows, label: labels, "filenames": ["x.png"] * n}, protocol=2)
        )
        parts[path.name] = (rows, labels)
    meta = {
        "label_names" if dataset == "cifar10" else "fine_label_names": [
            str(i) for i in range(facts.CLASSES)
        ]
    }
    (path.parent / ("batches.meta" if dataset == "cifar10" else "meta")).write_bytes(
        pickle.dumps(meta, protocol=2)
    )
    return parts


@pytest.mark.parametrize(("dataset", "train", "test"), [("cifar10", 50, 10), ("cifar100", 10, 10)])
def test_cifar_batches_are_read_in_their_real_format(dataset, train, test, tmp_path, monkeypatch):
    parts = write_cifar(tmp_path, dataset)
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    images, labels = archs.load(dataset, tmp_path, train=True)
    assert images.shape == (train, 3, 32, 32)
    rows, numbers = parts["data_batch_1" if dataset == "cifar10" else "train"]
    assert np.array_equal(images[:10].flatten(1), rows)  # channels first, red first
    assert labels[:10].tolist() == numbers
    images, labels = archs.load(dataset, tmp_path, train=False)
    assert images.shape == (test, 3, 32, 32)
    assert labels.tolist() == parts["test_batch" if dataset == "cifar10" else "test"][1]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_files_with_other_checksums_are_never_unpickled(dataset, tmp_path, monkeypatch):
    write_cifar(tmp_path, dataset)
    for name in archs.facts(dataset).FILES:
        (tmp_path / name).write_bytes(pickle.dumps(Mark(tmp_path / "mark")))
    monkeypatch.setattr(cifar, "download_and_extract_archive", lambda *_, **__: None)
    with pytest.raises(ValueError, match="damaged"):
        archs.load(dataset, tmp_path, train=True)
    assert not (tmp_path / "mark").exists()


# Mistakes in users' files


GOOD = {
    "CHANNELS": "1",
    "SIZE": "28",
    "CLASSES": "10",
    "MEAN": "(0.5,)",
    "STD": "(0.5,)",
    "VAL_SIZE": "10",
    "FILES": "[]",
    "load": "lambda data_dir, train: (torch.zeros(30, 1, 28, 28, dtype=torch.uint8),"
    " torch.zeros(30, dtype=torch.long))",
}


def write_dataset(folder, name, **changes):
    facts = {fact: value for fact, value in (GOOD | changes).items() if value is not None}
    (folder / name).mkdir(exist_ok=True)
    text = "import torch\n" + "".join(f"{fact} = {value}\n" for fact, value in facts.items())
    (folder / name / "__init__.py").write_text(text)


LABELS = "lambda data_dir, train: (torch.zeros(30, 1, 28, 28, dtype=torch.uint8), {})"
DATASETS = [
    (
        {"load": LABELS.format("torch.zeros(30, 1, dtype=torch.long)")},
        r"30 images and labels of shape \(30, 1\)",
    ),
    ({"load": LABELS.format("torch.full((30,), 10)")}, r"labels in 10..10, not in 0..9"),
    (
        {"load": LABELS.format("torch.zeros(29, dtype=torch.long)")},
        r"30 images and labels of shape \(29,\)",
    ),
    ({"load": None}, "has no load"),
    ({"load": LABELS.replace("uint8", "float32").format("torch.zeros(30)")}, "images of float32"),
    ({"load": LABELS.format("torch.zeros(30)")}, "labels of float32, not integers"),
    ({"load": LABELS.format("torch.zeros(30, dtype=torch.bool)")}, "labels of bool, not integers"),
    ({"MEAN": "(127.0,)"}, r"MEAN must have one number in \[0, 1\]"),
    ({"MEAN": "(0.5, 0.5, 0.5)"}, "MEAN must have one number .* per channel"),
    ({"MEAN": "0.5"}, "MEAN must have one number .* per channel"),
    ({"MEAN": "(float('nan'),)"}, "MEAN must"),
    ({"STD": "(64,)"}, r"STD must have one number in \(0, 1\]"),
    ({"STD": "(0.0,)"}, "STD must"),
    ({"VAL_SIZE": "-1"}, "VAL_SIZE must be a whole number"),
    ({"VAL_SIZE": "0.1"}, "VAL_SIZE must be a whole number"),
    ({"STD": None}, "has no STD"),
    ({"FILES": None}, "has no FILES"),
]


@pytest.mark.parametrize(("changes", "message"), DATASETS)
def test_mistakes_in_a_dataset_are_named(changes, message, own):
    write_dataset(own, "mine", **changes)
    with pytest.raises(ValueError, match=message) as error:
        archs.load("mine", "nowhere", True)
    assert "damaged" not in str(error.value)


LOADS = {
    "None": "'NoneType' object is not iterable",
    "(images, labels, labels)": "too many values to unpack",
    "(images, np.array([None] * 30))": "can't convert np.ndarray of type numpy.object_",
    "([image for image in images], labels)": "only integer tensors of a single element can be",
    "([np.zeros((1, 28, n)) for n in range(1, 31)], labels)": "inhomogeneous|expected sequence",
    "{'images': images, 'labels': labels}": "invalid data type 'str'",
}


@pytest.mark.parametrize("examples", LOADS)
def test_what_load_must_return_is_said(examples, own):
    images = "torch.zeros(30, 1, 28, 28, dtype=torch.uint8)"
    defined = f"images, labels = {images}, torch.zeros(30, dtype=torch.long)"
    text = f"lambda data_dir, train: {examples}\nimport numpy as np\n{defined}"
    write_dataset(own, "mine", load=text)
    with pytest.raises(ValueError, match=LOADS[examples]) as error:
        archs.load("mine", "nowhere", True)
    assert str(error.value).startswith(
        f"{own}/mine/__init__.py: load must return uint8 images of shape (N, 1, 28, 28) and "
        "integer labels of shape (N,), as two NumPy arrays or tensors ("
    )


def test_an_error_in_load_is_not_called_damage(own):
    text = "lambda data_dir, train: {}['train']"
    write_dataset(own, "mine", load=text)
    with pytest.raises(ValueError, match=r"^mine cannot be read .*\(KeyError: 'train'\)") as error:
        archs.load("mine", "nowhere", True)
    assert "elete" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_labels_may_have_any_integer_type(dtype, own):
    labels = f"__import__('numpy').arange(30, dtype='{dtype}') % 10"
    write_dataset(own, "mine", load=LABELS.format(labels))
    _, found = archs.load("mine", "nowhere", True)
    assert found.dtype == torch.int64
    assert found.tolist() == [n % 10 for n in range(30)]


def test_val_size_may_be_an_integer_of_numpy(own, small_args, undrawn):
    write_dataset(own, "mine", VAL_SIZE="__import__('numpy').int64(10)")
    args = small_args(dataset="mine", prune_iterations=1, end_iter=1, batch_size=10)
    assert type(args.val_size) is int
    main.main(args)
    assert [len(labels) for _, labels in archs.load_split("mine", "nowhere")] == [20, 10, 30]


def test_labels_may_be_a_column_of_a_table(own, small_args, undrawn):
    """Such a tensor is not contiguous."""
    write_dataset(own, "mine", load=LABELS.format("(torch.arange(60) % 10).view(30, 2)[:, 0]"))
    main.main(small_args(dataset="mine", prune_iterations=1, end_iter=1, batch_size=10))
    assert archs.load("mine", "nowhere", True)[1][:6].tolist() == [0, 2, 4, 6, 8, 0]


def test_mistakes_in_a_dataset_do_not_affect_others(own, small_args, capsys):
    write_dataset(own, "mine", MEAN="(127.0,)")
    with pytest.raises(SystemExit) as stop:
        main.parse_args(["--dataset=mine"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "MEAN must" in error
    assert error.count("\n") == 1
    main.main(small_args(prune_iterations=1, end_iter=1))


NETWORKS = [
    (
        "nn.Sequential(nn.Flatten(), nn.Linear(784, 3))",
        r"forward returns shape \(2, 3\) in evaluation, not logits of shape \(2, 10\)",
    ),
    ("nn.Linear(7, 10)", r"evaluation fails on images of shape \(2, 1, 28, 28\): RuntimeError: "),
    ("nn.Identity()", "not logits"),
    ("None", "build returns NoneType, not an nn.Module"),
    ("Returning(lambda y, training: (y, y))", "forward returns tuple in evaluation, not logits"),
    ("Returning(lambda y, training: {'y': y})", "forward returns dict in evaluation, not logits"),
    ("Returning(lambda y, training: y if training else (y,))", "returns tuple in evaluation"),
    ("Returning(lambda y, training: y if training else {})", "returns dict in evaluation"),
    ("Returning(lambda y, training: (y,) if training else y)", "returns tuple in training"),
    (
        "Returning(lambda y, training: y.argmax(1) if training else y)",
        r"forward returns shape \(2,\) in training, not logits of shape \(2, 10\)",
    ),
    (
        "Returning(lambda y, training: y.detach())",
        "cannot be trained and restored: RuntimeError: .* does not require grad",
    ),
    (
        "Returning(lambda y, training: y.view(7, -1) if training else y)",
        "training fails on images of shape .*: RuntimeError: shape '.*' is invalid",
    ),
    (
        "nn.Sequential(nn.Flatten(), nn.LazyLinear(10))",
        "lazy layers have no weights yet: run the network once in build",
    ),
    ("Embedding(nn.Embedding(2, 1, sparse=True))", "embed without sparse=True"),
    (
        "Embedding(nn.Embedding(2, 1).to(torch.bfloat16))",
        "0.weight is torch.bfloat16, not torch.float32",
    ),
    (
        "nn.Sequential(nn.Flatten(), nn.Linear(784, 10, dtype=torch.complex64))",
        "1.weight is torch.complex64, not torch.float32",
    ),
    ("Buffer(torch.ones(1).expand(10))", r"elements of scale share memory .* add .clone\(\)"),
    ("Late()", "forward adds late.bias, late.weight: create all layers in build"),
    (
        "Returning(lambda y, training: y * random.random())",
        "forward draws from Python's or NumPy's generator: use torch's, which is seeded",
    ),
    (
        "Returning(lambda y, training: y * np.random.rand())",
        "forward draws from Python's or NumPy's generator: use torch's, which is seeded",
    ),
    ("Extra()", "the state dict has _extra_state, which cannot be reset: .* in buffers"),
    (
        "nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).requires_grad_(False)",
        "nothing of mine would be pruned",
    ),
]


CLASSES = """
import random

import numpy as np
import torch
from torch import nn


class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))


class Returning(Linear):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x), self.training)


class Embedding(nn.Sequential):
    def __init__(self, embedding):
        super().__init__(embedding, nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x):
        return super().forward((x > 0).long())


class Buffer(Linear):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)


class Late(Linear):
    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = nn.Linear(10, 10)
        return self.late(super().forward(x))


class Extra(Linear):
    def get_extra_state(self):
        return {"calls": 0}

    def set_extra_state(self, state):
        pass


def build(channels, size, classes):
"""


@pytest.mark.parametrize(("network", "message"), NETWORKS)
def test_unsuitable_networks_are_refused(network, message, own, small_args, monkeypatch):
    (own / "common/mine.py").write_text(f"{CLASSES}    return {network}")
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=message) as error:
        main.main(small_args(arch_type="mine"))
    named = str(own / "common/mine.py") in str(error.value)
    assert named or "would be pruned" in message


def test_a_file_without_build_is_refused(own, small_args, capsys):
    (own / "common/mine.py").write_text(CLASSES.replace("def build", "def make") + "    pass")
    with pytest.raises(SystemExit):
        small_args(arch_type="mine")
    message = f"{own}/common/mine.py has no function build(channels, size, classes)\n"
    assert capsys.readouterr().err.endswith(message)


def test_the_check_before_training_changes_nothing(small_args, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args()
    state = main.new_state(args, main.new_model(args, 0))
    before = utils.snapshot(vars(state))
    main.check_training(args, state, small_data(480))
    assert same(before, utils.snapshot(vars(state)))


def test_memory_used_up_by_the_check_is_reported_as_such(small_args, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(main.Step, "iterate", fail)
    with pytest.raises(torch.OutOfMemoryError):
        main.main(small_args())


def test_a_mistake_in_a_users_file_keeps_its_traceback(own, small_args):
    (own / "common/mine.py").write_text(
        "from torch import nn\ndef build(*_): return nn.Linear(size, 10)\n"
    )
    with pytest.raises(NameError) as error, utils.one_line_errors("main.py"):
        main.main(small_args(arch_type="mine"))
    last = traceback.extract_tb(error.value.__traceback__)[-1]
    assert (last.filename, last.lineno) == (str(own / "common/mine.py"), 2)


def test_a_batch_too_small_for_batch_norm_is_refused(small_args):
    with pytest.raises(
        utils.BadInput,
        match=r"vgg19.py: training fails on images .*: ValueError: Expected more than 1 value per",
    ):
        main.main(small_args(arch_type="vgg19", batch_size=1))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_only_the_listed_files_are_read(dataset, tmp_path, monkeypatch):
    """A folder with just the files in FILES has the dataset."""
    write_cifar(tmp_path, dataset)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        assert str(path.relative_to(tmp_path)) in archs.facts(dataset).FILES
    monkeypatch.setattr(cifar, "check_integrity", lambda path, *_: Path(path).exists())
    assert len(archs.load(dataset, tmp_path, train=True)[1])
