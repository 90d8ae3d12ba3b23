"""main.py and combine_plots.py as a user types them."""

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import archs
import combine_plots
import main
import utils
from conftest import ROOT, arrays, command, needs_linux, png_size

QUICK = ("main.py", "--dataset=digits", "--prune_percent=20", "--gpu=cpu")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The output folder after lt (four rounds), reinit (three) and combine_plots.py.

    The commands are started as from a notebook in an ASCII terminal. Each names the next one.
    """
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        # Notebooks set it for all commands, even in environments that do not have it.
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("PYTHONIOENCODING", "ascii")
        run_commands(folder)
    return folder


def run_commands(folder):
    line = [*QUICK, "--prune_iterations=4", "--end_iter=3", f"--output_dir={folder}"]
    for kind, following in (("lt", "main.py"), ("reinit", "combine_plots.py")):
        result = command(*line)
        assert result.returncode == 0, result.stderr
        assert "51.20" in result.stdout or kind == "reinit"
        assert re.search(
            r"epoch 3/3, loss \d\.\d{4}, "
            r"test accuracy \d\d\.\d\d% \(\d\d\.\d\d% at best validation\)",
            result.stderr,
        )
        *_, figure, following_line = result.stdout.splitlines()
        assert png_size(Path(figure.removeprefix("figure: ")))
        line = shlex.split(following_line.removeprefix("next: python3 "))
        assert line[0] == following
        if kind == "lt":
            line.append("--prune_iterations=3")
    result = command(*line)
    assert (result.returncode, result.stderr) == (0, "")
    *_, last = result.stdout.splitlines()
    assert last.startswith("At 64.0% of the weights, reinit, lt's masks: ")


def test_the_page_of_files_is_true(output):
    """Every run has all of its files, with the contract's names, and leaves no temporary ones."""
    page = (ROOT / "docs/files.md").read_text()
    rows = re.findall(r"^\| `(.*?)` \| (.*) \|$", page.partition("\n## ")[0], re.MULTILINE)
    names = {path.rpartition("/")[2] for path, _ in rows}
    assert names > {
        "<type>_compression.dat",
        "<type>_bestaccuracy.dat",
        "<type>_finalaccuracy.dat",
        "<type>_earlystop.dat",
        "<type>_earlystopaccuracy.dat",
        "<type>_untrained.dat",
        "<type>_trainaccuracy.dat",
        "<type>_all_loss_<round>.dat",
        "<type>_all_accuracy_<round>.dat",
        "<type>_settings.json",
        "<type>_log.jsonl",
        "initial_state_dict_<type>.pth.tar",
        "<round>_model_<type>.pth.tar",
        "<type>_LossVsAccuracy_<round>.png",
        "<type>_AccuracyVsWeights.png",
        "combined_<arch>_<dataset>.png",
    }
    for path, content in rows:
        expected = "only with `--connect_to`" not in content
        path = path.replace("<arch>", "fc1").replace("<dataset>", "digits")
        for kind, rounds in (("lt", range(4)), ("reinit", range(3))):
            for round_ in rounds:
                name = path.replace("<type>", kind).replace("<round>", str(round_))
                assert (output / name).exists() == expected, name
    assert not list(output.rglob("*.tmp"))
    assert {path.name for path in output.iterdir()} == {"dumps", "saves", "plots", "runs"}


def test_arrays_load_with_and_without_allow_pickle(output):
    dumps = output / "dumps/lt/fc1/digits"
    for path in dumps.glob("*.dat"):
        values = np.load(path)
        assert values.ndim == 1
        assert values.dtype == float
        assert np.array_equal(values, np.load(path, allow_pickle=True))
    remaining = np.load(dumps / "lt_compression.dat")
    assert remaining.tolist() == pytest.approx([100, 80, 64, 51.2], abs=0.01)
    assert len(np.load(dumps / "reinit_bestaccuracy.dat")) == 3
    assert (np.load(dumps / "lt_bestaccuracy.dat") > 70).all(), (
        "fc1 learns more than this of digits in three epochs"
    )


def test_log_rows_have_the_keys_of_the_contract(output):
    lines = (output / "dumps/lt/fc1/digits/lt_log.jsonl").read_text().splitlines()
    assert len(lines) == 16
    keys = "round epoch iteration weights_remaining val_loss val_accuracy test_accuracy seconds"
    for number, row in enumerate(map(json.loads, lines)):
        first, last = number % 4 == 0, number % 4 == 3
        more = ["train_loss"] * (not first) + ["train_accuracy"] * last
        assert row.keys() >= {*keys.split(), *more}
        assert ("train_loss" in row, "train_accuracy" in row) == (not first, last)


def test_checkpoints_load_without_unpickling(output):
    ticket = torch.load(output / "saves/fc1/digits/3_model_lt.pth.tar", weights_only=True)
    assert ticket.keys() >= {
        "model",
        "final",
        "masks",
        "round",
        "weights_remaining",
        "test_accuracy",
        "args",
        "made_by",
    }
    assert ticket["round"] == 3
    assert ticket["args"]["prune_percent"] == 20
    model = archs.build("digits", "fc1")
    for name in ("model", "final"):
        model.load_state_dict(ticket[name])
        for parameter, mask in ticket["masks"].items():
            assert mask.dtype == torch.bool
            assert not ticket[name][parameter][~mask].any()
    kept = sum(int(mask.sum()) for mask in ticket["masks"].values())
    assert ticket["weights_remaining"] == pytest.approx(100 * kept / 266200)


def test_tensorboard_shows_what_the_readme_says(output):
    folder = output / "runs/fc1/digits/lt"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    layers = ("1.weight", "3.weight", "5.weight")
    evaluations = ("loss/train", "loss/val", "accuracy/val", "accuracy/test")
    tickets = tuple(utils.TICKET_SCALARS.keys() - {"ticket/error_barrier"})
    densities = tuple(f"density/{layer}" for layer in layers)
    tags = events.Tags()
    assert set(tags["scalars"]) >= {*evaluations, *tickets, *densities}
    assert set(tags["histograms"]) >= {f"surviving/{layer}" for layer in layers}
    assert "ticket/connections_per_pixel" in tags["images"]
    for tag in evaluations:
        assert [event.step for event in events.Scalars(tag)] == [
            20 * epoch for epoch in range(1, 13)
        ]
    for tag in tickets + densities:
        assert [event.step for event in events.Scalars(tag)] == [0, 1, 2, 3]
    for tag, name in (
        ("accuracy", "bestaccuracy"),
        ("untrained_accuracy", "untrained"),
        ("training_accuracy", "trainaccuracy"),
        ("early_stop_iteration", "earlystop"),
        ("weights_remaining", "compression"),
    ):
        values = np.load(output / f"dumps/lt/fc1/digits/lt_{name}.dat").tolist()
        shown = [event.value for event in events.Scalars(f"ticket/{tag}")]
        assert shown == pytest.approx(values), tag
    assert events.Histograms("surviving/1.weight")[3].histogram_value.num == round(235200 * 0.512)


def test_tensorboard_has_the_flags_without_their_default(small_args):
    flags = {"prune_iterations": 1, "seed": 3, "augment": True, "lr_milestones": "9,10"}
    main.main(small_args(**flags))
    args = small_args(**flags, prune_type="reinit", masks_from="lt")
    main.main(args)
    expected = flags | {"prune_percent": 20, "end_iter": 2}
    del expected["prune_iterations"]  # which may change on resume
    for kind, others in (("lt", {}), ("reinit", {"masks_from": "lt"})):
        events = EventAccumulator(str(utils.Files(args, kind).runs)).Reload()
        page = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        hparams = metadata.parse_session_start_info_plugin_data(page).hparams
        shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
        assert shown == {"prune_type": kind} | expected | others
        # TensorBoard would show the columns that the first run names.
        with pytest.raises(KeyError):
            events.SummaryMetadata(metadata.EXPERIMENT_TAG)


def test_figures_are_of_column_width_and_of_print_resolution(output):
    for path in (output / "plots").rglob("*.png"):
        width, height = png_size(path)
        assert 960 <= width <= 1000  # 3.3 inches at 300 dpi
        assert 700 < height < 1900


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse_args(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag, default in vars(main.parse_args([])).items():
        assert f"--{flag}" in text
        words = {"val_size": "the dataset's", "threads": "OMP_NUM_THREADS"}
        shown = words.get(flag, utils.as_flag(default))
        shown = "--prune_percent" if flag.startswith("prune_percent_") else shown
        assert default is False or f"(default: {shown}" in text
    assert "default: None" not in text
    with pytest.raises(SystemExit):
        combine_plots.parse_args(["--help"])
    assert "--arch_type" in capsys.readouterr().out


def test_recorded_defaults_depend_on_dataset_and_rates(small_args):
    args = small_args(
        prune_percent=30, prune_percent_conv=15, prune_iterations=1, end_iter=1, lr=0.01
    )
    main.main(args)
    recorded = json.loads(utils.Files(args).settings.read_text())
    assert recorded["settings"]["lr"] == 0.01
    rates = {
        "prune_percent": 30,
        "prune_percent_conv": 15,
        "prune_percent_downsample": 15,
        "prune_percent_output": 30,
    }
    own = rates | {"dataset": "digits", "val_size": 200, "lr": 1.2e-3, "end_iter": 100}
    assert {name: recorded["defaults"][name] for name in own} == own


@pytest.mark.parametrize(
    ("kind", "refused"), [("lt", ["masks_from"]), ("random", []), ("shuffle", ["rewind_iter"])]
)
def test_the_flags_that_a_prune_type_does_not_have_are_recorded(kind, refused, small_args, undrawn):
    args = small_args(prune_type=kind, prune_iterations=1, end_iter=1)
    main.main(args)
    assert json.loads(utils.Files(args).settings.read_text())["refused"] == refused


@pytest.mark.parametrize("name", ["a/b", "my-type", "a b", "before_lt"])
def test_names_that_do_not_fit_into_file_names_are_refused(name, monkeypatch, capsys):
    monkeypatch.setitem(main.PRUNE_TYPES, name, main.PRUNE_TYPES["lt"])
    with pytest.raises(SystemExit):
        main.parse_args([f"--prune_type={name}"])
    assert f"--prune_type={name}: its name is part of file names" in capsys.readouterr().err


def test_the_defaults_are_those_of_the_contract():
    contract = {
        "prune_type": "lt",
        "dataset": "mnist",
        "arch_type": "fc1",
        "seed": 0,
        "trials": 1,
        "prune_percent": 10.0,
        "prune_percent_conv": 10.0,
        "prune_percent_downsample": 10.0,
        "prune_percent_output": 10.0,
        "prune_iterations": 35,
        "prune_scope": "layer",
        "criterion": "magnitude",
        "one_shot": False,
        "masks_from": None,
        "rewind_iter": 0,
        "optimizer": "adam",
        "lr": 1.2e-3,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "lr_schedule": "step",
        "lr_milestones": [],
        "lr_gamma": 0.1,
        "warmup_iter": 0,
        "batch_size": 60,
        "end_iter": 100,
        "max_iter": 0,
        "label_smoothing": 0.0,
        "augment": False,
        "val_size": 5000,
        "valid_freq": 1,
        "eval_iter": 0,
        "gpu": 0,
        "threads": None,
        "sparse_below": 22.0,
        "amp": False,
        "data_dir": "data",
        "output_dir": ".",
        "overwrite": False,
        "print_freq": 1,
    }
    assert vars(main.parse_args([])).items() >= contract.items()


WHOLE = "a whole number in [0, 1e9), not"
COUNT = "a whole number in [1, 1e9), not"
HUGE = "100000000000000000000"
POSITIVE = "a number in (0, inf), not"
SHARE = "a number in [0, 100), not"
GPU = "a whole number in [0, inf) or cpu, not"
BAD_VALUES = {  # {flag: (part of the error, values)}
    "prune_type": ("reinit", ["oneshot"]),
    "dataset": ("fashionmnist", ["imagenet"]),
    "arch_type": ("densenet121", ["fc2"]),
    "seed": (
        f"a whole number in [0, {2**64}), not",
        ["-1", "18446744073709551616", "1.0", "9" * 5000],
    ),
    "trials": ("a whole number in [1, 1000), not", ["0", "1000", HUGE]),
    "threads": ("a whole number in [1, 1024), not", ["0", "-1", "1024", "two"]),
    "sparse_below": (SHARE, ["100", "-1"]),
    "prune_percent": (
        "a number in (0, 100), not",
        ["0", "100", "-5", "nan", "inf", "ten", ""],
    ),
    "prune_percent_conv": (SHARE, ["100", "-1"]),
    "prune_percent_downsample": (SHARE, ["100", "-1"]),
    "prune_percent_output": (SHARE, ["100", "-1"]),
    "prune_iterations": ("a whole number in [1, 10000), not", ["0", "-1", "1.5", "x", "10000"]),
    "prune_scope": ("global", ["all"]),
    "criterion": ("same_sign", ["taylor", ""]),
    "one_shot": ("ignored explicit argument", ["yes"]),
    "masks_from": ("lt", ["random"]),
    "paper": ("ignored explicit argument", ["yes"]),
    "augment": ("ignored explicit argument", ["yes"]),
    "rewind_iter": (WHOLE, ["-1", "1.5", "x", HUGE]),
    "optimizer": ("sgd", ["lamb"]),
    "lr": (POSITIVE, ["0", "-1e-3", "nan", "inf", "1e400", "fast"]),
    "momentum": ("a number in [0, 1), not", ["1"]),
    "nesterov": ("ignored explicit argument", ["yes"]),
    "weight_decay": ("a number in [0, inf), not", ["-1", "nan"]),
    "lr_schedule": ("cosine", ["cos"]),
    "label_smoothing": ("a number in [0, 1), not", ["1", "-0.1", "nan"]),
    "lr_milestones": (COUNT, ["", "5,", "0", "5;6", "1e3", HUGE]),
    "lr_gamma": ("a number in (0, 1), not", ["0", "1", "1e300"]),
    "warmup_iter": (WHOLE, ["-1", "1.5", "x", HUGE]),
    "batch_size": (COUNT, ["0", "-1", "1.5", "x", HUGE]),
    "end_iter": (COUNT, ["0", "-1", "1.5", "x", HUGE, "1000000000"]),
    "max_iter": (WHOLE, ["-1", "1.5", "x", HUGE, "1000000000"]),
    "val_size": (WHOLE, ["-1", HUGE]),
    "valid_freq": (COUNT, ["0", "-1", "1.5", "x"]),
    "eval_iter": (WHOLE, ["-1", "1.5", "x"]),
    "gpu": (GPU, ["first", "-1"]),
    "print_freq": (COUNT, ["0", "-1", "1.5", "x"]),
    "output_dir": ("there is no such user", ["~nosuchuser/x"]),
    "resume": ("unrecognized", ["yes"]),
    "prune": ("unrecognized", ["5"]),
}
BAD = [
    (f"--{name}={value}", message)
    for name, (message, values) in BAD_VALUES.items()
    for value in values
]


@pytest.mark.parametrize(("flag", "advice"), BAD, ids=[flag[:40] for flag, _ in BAD])
def test_bad_flags_are_one_line(flag, advice, capsys):
    with pytest.raises(SystemExit) as exit_:
        main.parse_args([flag])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1
    assert flag.split("=")[0] in error
    assert advice in error


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--masks_from=lt"], "for the other prune types"),
        *[
            ([f"--prune_type={kind}", "--rewind_iter=5", "--warmup_iter=5"], "only lt and random")
            for kind in ("reinit", "shuffle", "signed_constant", "lr_rewind", "finetune")
        ],
        (["--prune_type=finetune"], "equals lr_rewind if the learning rate is constant"),
        (["--prune_type=finetune", "--warmup_iter=1"], "equals lr_rewind"),
        *[
            ([f"--prune_type={kind}", "--one_shot", "--lr_milestones=9"], "from trained weights")
            for kind in ("lr_rewind", "finetune")
        ],
        (["--one_shot", "--criterion=snip"], "--criterion=snip, which uses no trained weights"),
        (["--one_shot", "--criterion=synflow"], "--criterion=synflow, which uses no trained"),
        (["--one_shot", "--prune_type=reinit", "--masks_from=lt"], "share the first round"),
        (
            ["--paper", "--arch_type=lenet5"],
            "--paper: the file of lenet5 does not define PAPER; those of conv2, conv4, conv6, fc1,",
        ),
        ([f"--seed={2**64 - 1}", "--trials=2"], f"--trials=2 needs seeds beyond {2**64 - 1}"),
        (["--nesterov"], "--nesterov needs --optimizer=sgd and a --momentum above 0"),
        (["--nesterov", "--optimizer=adamw"], "--no-nesterov turns it off"),
        (["--nesterov", "--optimizer=sgd", "--momentum=0"], "a --momentum above 0"),
        (
            ["--lr_schedule=cosine", "--lr_milestones=5"],
            "--lr_milestones is not for --lr_schedule=cosine",
        ),
        (
            ["--lr_schedule=cosine", "--prune_type=finetune"],
            "--lr_schedule=cosine is not for --prune_type=finetune",
        ),
        (
            ["--lr_schedule=cosine", "--prune_type=finetune", "--warmup_iter=5"],
            "give --lr_milestones instead, or use lr_rewind",
        ),
    ],
)
def test_incompatible_flags_are_one_line(flags, advice, capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse_args(flags)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert advice in error


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        ({"rewind_iter": 40}, "--rewind_iter=40 is not within a round, which has 40"),
        ({"batch_size": 1238}, "--batch_size=1238 is larger than the 1237"),
        ({"val_size": 1437}, "--val_size=1437 leaves none of the 1437"),
        ({"val_size": 10**8}, "leaves none"),
        ({"lr_milestones": "7,40"}, "--lr_milestones=40 is not within a round, which has 40"),
        ({"warmup_iter": 41}, "--warmup_iter=41 is not within a round, which has 40"),
        ({"gpu": torch.cuda.device_count() + 1}, "there is no GPU"),
        ({"output_dir": "/dev/null/results"}, "--output_dir=/dev/null/results"),
        ({"output_dir": __file__}, "cannot be used"),
        ({"dataset": "mnist", "data_dir": "/dev/null"}, "--dataset=digits"),
    ],
)
def test_bad_combinations_are_refused_before_training(flags, advice, small_args, monkeypatch):
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=advice):
        main.main(small_args(**flags))


def test_errors_are_one_line_with_a_status(tmp_path, small_args, capsys):
    with pytest.raises(SystemExit) as stop, utils.one_line_errors("main.py"):
        main.main(small_args(batch_size=5000))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: --batch_size=5000")
    assert error.count("\n") == 1
    result = command(*QUICK, "--end_iter=1", "--lr=1e30", f"--output_dir={tmp_path}")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("main.py: error: the loss is not finite")
    assert "Traceback" not in result.stderr


def test_an_old_python_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    with pytest.raises(SystemExit) as stop, utils.one_line_errors("main.py"):
        main.main(None)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("main.py: error: Python 3.11 or newer is needed, not 3.")


def test_an_architecture_of_another_dataset_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(
        archs,
        "architectures",
        lambda dataset=None: ["fc1", "tiny"] if dataset != "digits" else ["fc1"],
    )
    with pytest.raises(SystemExit):
        main.parse_args(["--dataset=digits", "--arch_type=tiny"])
    assert (
        "--arch_type=tiny does not support --dataset=digits; these do: fc1"
        in capsys.readouterr().err
    )


def test_without_a_gpu_the_cpu_is_used_and_reported(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main.pick_device(0).type == "cpu"
    assert "CPU" in capsys.readouterr().out
    assert main.pick_device("cpu").type == "cpu"


@pytest.fixture
def two_gpus(monkeypatch):
    """Make torch report two GPUs; restore the precision that is chosen for them.

    Returns a list, to which those that are checked are added.
    """
    checked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(main, "check_gpu", checked.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    precision = torch.get_float32_matmul_precision()
    yield checked
    torch.set_float32_matmul_precision(precision)


def test_a_gpu_that_exists_is_used(two_gpus):
    assert main.pick_device(1) == torch.device("cuda", 1)
    assert two_gpus == [torch.device("cuda", 1)]
    with pytest.raises(utils.BadInput, match="0 to 1"):
        main.pick_device(2)


def test_a_gpu_that_cannot_compute_is_refused(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(torch, "ones", fail)
    message = r"GPU 1 cannot be used \(RuntimeError: CUDA error: no kernel .*\)\. Install a torch"
    with pytest.raises(utils.BadInput, match=message):
        main.check_gpu(torch.device("cuda", 1))


def test_tf32_and_autotuning_of_a_gpu_are_recorded(two_gpus):
    args = main.parse_args([])
    assert utils.machine(args, main.pick_device(1)) == {
        "device": "cuda, card 1",
        "threads": 1,
        "sparse_below": 22.0,
        "float32_matmul_precision": "high",
        "cudnn_allow_tf32": True,
        "cudnn_benchmark": True,
    }
    assert "cudnn_benchmark" not in utils.machine(args, main.pick_device("cpu"))


def test_importing_has_no_effects(tmp_path):
    lines = (
        "import sys",
        f"sys.path.insert(0, {str(main.__file__).rpartition('/')[0]!r})",
        "import main, utils, archs, combine_plots",
    )
    result = command("-c", "\n".join(lines), cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


# Streams


@needs_linux
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing(closed, tmp_path, small_args, undrawn):
    args = small_args(prune_iterations=1, end_iter=1)
    main.main(args)
    flags = ["--prune_iterations=1", "--end_iter=1", f"--output_dir={tmp_path}"]
    for line in (
        [*QUICK, *flags],
        ["combine_plots.py", f"--output_dir={tmp_path}", f"--csv={tmp_path / 'table.csv'}"],
    ):
        result = command("-c", CLOSED, closed, *line)
        assert (result.returncode, result.stderr.count("Traceback")) == (0, 0)
    assert arrays(args) == arrays(main.parse_args([*QUICK[1:], *flags]))
    assert (tmp_path / "table.csv").read_text().startswith("arch_type,")


CLOSED = """
import os, shlex, sys
os.execvp("sh", ["sh", "-c", f"exec {shlex.join([sys.executable, *sys.argv[2:]])} {sys.argv[1]}"])
"""


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    with utils.one_line_errors("main.py"):
        print("Zürich, \udcff, ±", flush=True)
    assert shown.getvalue() == rb"Z\xfcrich, \udcff, \xb1" + os.linesep.encode()


def test_streams_that_cannot_be_reconfigured_stay(monkeypatch):
    """As in a notebook."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with utils.one_line_errors("main.py"):
        print("hello")
    assert sys.stdout is stream
    assert stream.getvalue() == "hello\n"


@pytest.mark.parametrize("program", [main, combine_plots])
def test_docstrings_are_not_needed(program, monkeypatch):
    """With PYTHONOPTIMIZE=2, there are none."""
    monkeypatch.setattr(program, "__doc__", None)
    assert program.parse_args(["--dataset=digits"]).dataset == "digits"


# Threads


@pytest.mark.parametrize(
    ("threads", "variable", "torchrun", "large", "expected"),
    [
        (None, None, False, False, 1),
        (None, None, False, True, 8),
        (None, "8", False, False, 8),
        (None, "", False, False, 1),
        (3, "8", False, False, 3),
        (None, "1", True, False, 1),
        (None, "1", True, True, 5),  # 16 cores for three processes
        (3, "1", True, True, 3),
    ],
)
def test_flag_then_variable_then_work_set_the_threads(
    threads, variable, torchrun, large, expected, monkeypatch
):
    monkeypatch.setattr(utils, "THREADS", 8)
    monkeypatch.setattr(utils, "available_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    work = utils.WORK_FOR_THREADS
    assert utils.pick_threads(threads, work if large else work - 1) == expected


def test_all_cores_are_available_if_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    assert utils.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert utils.available_cores() == 6


def test_more_processes_than_cores_get_one_thread_each(monkeypatch):
    monkeypatch.setattr(utils, "available_cores", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert utils.pick_threads(None, utils.WORK_FOR_THREADS) == 1


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_only_small_networks_train_on_one_thread(dataset, monkeypatch):
    monkeypatch.setattr(utils, "THREADS", 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads = {}
    for arch_type in ("fc1", "lenet5", "conv2", "conv6", "resnet20", "vgg16"):
        args = main.parse_args([f"--arch_type={arch_type}", f"--dataset={dataset}"])
        _, operations = main.inspect_network(args, archs.build(dataset, arch_type))
        threads[arch_type] = utils.pick_threads(None, operations)
    assert threads.pop("fc1") == threads.pop("lenet5") == 1
    assert set(threads.values()) == {8}


@pytest.mark.parametrize("batch_size", [1, 60])
def test_the_operations_of_a_batch_are_counted(batch_size):
    args = main.parse_args([f"--batch_size={batch_size}"])
    _, operations = main.inspect_network(args, archs.build("mnist", "fc1"))
    assert operations == batch_size * 2 * 266200


def test_the_batch_size_counts(small_args, undrawn, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    found = []
    monkeypatch.setattr(utils, "pick_threads", lambda *values: found.append(values) or 1)
    main.main(small_args(prune_iterations=1, end_iter=1, batch_size=100, threads=3))
    assert found == [(3, 100 * 2 * 266200)]


def test_the_threads_are_used_recorded_and_a_change_is_noted(small_args, undrawn, capsys):
    args = small_args(prune_iterations=1, end_iter=1)
    for rounds, threads, note in (
        (1, 2, ""),
        (2, 2, ""),
        (3, 1, f"note: {utils.Files(args).dumps} resumes with changes: threads 2, now 1\n"),
    ):
        try:
            main.main(small_args(prune_iterations=rounds, end_iter=1, threads=threads))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        captured = capsys.readouterr()
        assert note in captured.err
        assert captured.err.count("note: ") == bool(note)
        assert f" on {utils.plural(threads, 'thread')}; " in captured.out
        assert json.loads(utils.Files(args).settings.read_text())["threads"] == threads


def test_results_of_a_small_network_do_not_depend_on_the_cores(
    tmp_path, small_args, undrawn, monkeypatch
):
    """A process with all cores trains like this one, which has one thread."""
    args = small_args(prune_iterations=2)
    main.main(args)
    expected = arrays(args)
    monkeypatch.delenv("OMP_NUM_THREADS")
    flags = ("--prune_iterations=2", "--end_iter=2", f"--output_dir={tmp_path}")
    result = command(*QUICK, *flags)
    assert result.returncode == 0, result.stderr
    assert " on 1 thread; " in result.stdout
    assert arrays(main.parse_args([*QUICK[1:], *flags])) == expected
    assert expected


# What a run prints


def test_the_first_line_describes_the_run(tmp_path, small_args, capsys):
    main.main(small_args(max_iter=25, trials=2, prune_percent_output=10, output_dir=tmp_path))
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("2 trials of 3 rounds of 25 iterations on 1 thread; about ")
    remaining = 235200 * 0.8**2 + 30000 * 0.8**2 + 1000 * 0.9**2
    assert second == (
        "266200 of 266610 parameters are prunable weights; "
        f"{100 * remaining / 266200:.2f}% of them remain in the last round "
        f"({100 * (remaining + 410) / 266610:.2f}% of all parameters)"
    )
    estimate = float(re.search(r"about (\d+) MB of results in", first)[1])
    found = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) / 1e6
    assert estimate == pytest.approx(found, rel=0.15)
    begins = [line for line in rest if " (last: 2): " in line]
    assert ["to go" in line for line in begins] == [False, True, True] * 2
    results = [line for line in rest if "at best validation" in line]
    assert len(results) == 6
    assert all(re.search(r"\(iteration 2[05]\)", line) for line in results)


@pytest.mark.parametrize(("arch_type", "gigabytes"), [("vgg19", 5.0)])
def test_the_disk_space_of_a_large_network_is_estimated(arch_type, gigabytes):
    args = main.parse_args(
        [f"--arch_type={arch_type}", "--dataset=cifar10", "--prune_iterations=25", "--end_iter=1"]
    )
    model = archs.build("cifar10", arch_type)
    data = main.Data((None, torch.zeros(50000)), None, None, torch.zeros(1), None)
    line, *_ = main.describe_run(
        args,
        model,
        main.layer_percents(args, model, main.inspect_network(args, model)[0]),
        data,
        trials=1,
    )
    assert line.startswith("25 rounds of 750 iterations on 1 thread; ")
    megabytes = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6
    estimate = float(re.search(r"about (\d+) MB", line)[1])
    assert estimate / 1000 == pytest.approx(gigabytes, rel=0.15)
    assert estimate > 25 * 2 * megabytes


def test_what_remains_is_announced_only_if_it_is_known(monkeypatch):
    """Across layers with different rates, it depends on the survivors of each rate."""
    weights = {"a": torch.ones(100), "b": torch.ones(57)}

    def announced(*flags, rates):
        args = main.parse_args(["--prune_iterations=9", *flags])
        return main.last_survivors(args, weights, dict(zip(weights, rates, strict=True)))

    for flags, rates in (
        ([], (20, 20)),
        ([], (20, 10)),
        (["--prune_scope=global"], (20, 20)),
        (["--prune_scope=global"], (20, 0)),
        (["--prune_scope=erk"], (20, 20)),
    ):
        percents = dict(zip(weights, rates, strict=True))
        masks = {name: torch.ones_like(weights[name], dtype=torch.bool) for name in weights}
        for _ in range(8):
            scope = main.parse_args(flags).prune_scope
            masks = main.prune(weights, masks, percents, scope)
        expected = sum(int(mask.sum()) for mask in masks.values())
        assert announced(*flags, rates=rates) == expected
    for scope in ("global", "erk"):
        assert announced(f"--prune_scope={scope}", rates=(20, 10)) is None
    monkeypatch.setitem(main.SCOPES, "other", lambda scores, masks, percents: {})
    assert announced("--prune_scope=other", rates=(20, 20)) is None


def test_parameters_that_are_not_pruned_are_announced(small_args):
    args = small_args(arch_type="resnet20", prune_scope="global", prune_percent_output=10)
    model = main.new_model(args, 0)
    data = main.Data((None, torch.zeros(1437)), None, None, torch.zeros(1), None)
    percents = main.layer_percents(args, model, main.inspect_network(args, model)[0])
    line = main.describe_run(args, model, percents, data, trials=1)[1]
    weights = sum(weight.numel() for weight in main.prunable(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    assert line == f"{weights} of {total} parameters are prunable weights"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            ["--prune_type=lt", "--dataset=digits", "--overwrite"],
            "--dataset=digits --prune_type=reinit --masks_from=lt",
        ),
        (
            ["--paper", "--prune_type", "lt", "--trials=2"],
            "--paper --prune_type lt --trials=2 --prune_type=reinit --masks_from=lt",
        ),
        (["--one_shot"], "--one_shot --prune_type=reinit"),
        (
            ["--rewind_iter=5", "--output_dir=a b"],
            "--rewind_iter=5 '--output_dir=a b' --prune_type=reinit --masks_from=lt "
            "--rewind_iter=0",
        ),
    ],
)
def test_the_next_command_is_the_control(argv, expected):
    args = main.parse_args(argv)
    figure, following = main.closing(args, argv).strip().splitlines()
    which = "figure of seed 0" if "--trials=2" in argv else "figure"
    assert figure == f"{which}: {utils.Files(args).figure('AccuracyVsWeights')}"
    assert following == f"next: python3 main.py {expected}"
    control = main.parse_args(shlex.split(expected))
    assert not control.overwrite
    changed = {"prune_type": "reinit", "rewind_iter": 0, "overwrite": False}
    changed["masks_from"] = None if args.one_shot else "lt"
    assert vars(control) == vars(args) | changed


@pytest.mark.parametrize("folder", [".", "a b"])
def test_after_a_control_the_figures_are_next(folder):
    args = main.parse_args(["--prune_type=reinit", f"--output_dir={folder}"])
    _, following = main.closing(args, []).strip().splitlines()
    name, *command = shlex.split(following)
    assert (name, command[:2]) == ("next:", ["python3", "combine_plots.py"])
    assert combine_plots.parse_args(command[2:]).output_dir == [folder]


def test_the_time_to_go_follows_from_finished_rounds(small_args, capsys):
    state = main.new_state(small_args(), main.new_model(small_args(), 0))
    row = {
        "round": 0,
        "epoch": 1,
        "iteration": 20,
        "weights_remaining": 100.0,
        "train_loss": 1.0,
        "seconds": 0.0,
    }
    state.rows = [[row | {"seconds": 100.0}], [row | {"seconds": 140.0}], []]
    state.round, state.seconds = 2, 30.0
    run = utils.Run(small_args(prune_iterations=5))
    run.state = state
    with utils.Log(run, 20, 20):
        assert "about 05:30 to go" in capsys.readouterr().out


def test_the_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/frankle")
    args = main.parse_args(["--output_dir=~/tickets", "--data_dir=~/data"])
    assert (args.output_dir, args.data_dir) == ("/home/frankle/tickets", "/home/frankle/data")


# Older versions of matplotlib use old names of pyparsing, of which users see nothing.
@pytest.mark.filterwarnings("error", "ignore::DeprecationWarning:(matplotlib|pyparsing)")
def test_a_single_round_causes_no_warning(small_args, capsys):
    args = small_args(prune_iterations=1, end_iter=1)
    main.main(args)
    combine_plots.main(combine_plots.parse_args([f"--output_dir={args.output_dir}"]))
    assert "Warning" not in capsys.readouterr().err


def test_drawing_libraries_are_imported_only_to_draw():
    code = (
        "import sys, main; print({'matplotlib', 'pandas', 'scipy', 'seaborn'} & sys.modules.keys())"
    )
    assert command("-c", code).stdout == "set()\n"
