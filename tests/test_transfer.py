"""Tickets of another run: `--tickets_from` trains its masks, with its weights or with others."""

import json
import re
import shlex
import shutil
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import archs
import combine_plots
import main
import utils
from conftest import (
    arrays,
    change_initial,
    check_training,
    finished_rounds,
    initial_weights,
    log_rows,
    same,
    small_network,
    ticket,
)

pytestmark = pytest.mark.usefixtures("undrawn")

K = 7
RATE = 1.2e-3
DATASET = """
from archs import digits

CHANNELS, SIZE, CLASSES = 1, 28, {classes}
MEAN, STD = (0.6,), (0.3,)
VAL_SIZE = 300
FILES = []


def load(data_dir, train):
    images, labels = digits.load(data_dir, train)
    labels = ({classes} // 10 * labels + images[:, 0, 14, 14] % ({classes} // 10)) % {classes}
    return 255 - images, labels
"""


PATCHES = """
import torch
from torch import nn


class Patches(nn.Module):
    def __init__(self, classes, size):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 7, stride=7)
        self.place = nn.Parameter(torch.randn((size // 7) ** 2, 8))
        self.output = nn.Linear(8, classes)

    def forward(self, x):
        return self.output((self.patches(x).flatten(2).mT + self.place).relu().mean(1))


def build(channels, size, classes):
    return Patches(classes, size)
"""


@pytest.fixture
def new_dataset(own):
    """A function that makes a dataset of the negatives of digits: new_dataset(name, classes)."""

    def make(name, classes):
        (own / name).mkdir()
        (own / name / "__init__.py").write_text(DATASET.format(classes=classes))

    return make


@pytest.fixture
def pair(small_args, tmp_path):
    """A function that returns the settings of a source, of lt, and of a run that uses its tickets.

    pair({flag: value}, **{flag: value of the second run}). Both have an epoch per round.
    """

    def make(source=(), **user):
        first = small_args(**{"end_iter": 1, "output_dir": tmp_path / "source"} | dict(source))
        folder = tmp_path / "source/saves" / first.arch_type / first.dataset
        return first, small_args(**{"end_iter": 1, "tickets_from": folder} | user)

    return make


def masks_of(args):
    """Return the masks of a run's tickets."""
    return [ticket(args, round_)["masks"] for round_ in range(args.prune_iterations)]


def masked(weights, masks):
    return {name: tensor * masks.get(name, 1) for name, tensor in weights.items()}


# What a ticket is


@pytest.mark.parametrize("k", [0, K])
def test_every_round_trains_the_masks_and_weights_of_the_source(
    k, pair, new_dataset, starts, monkeypatch
):
    """On other data, by another optimizer and schedule; the weights are those at iteration K."""
    new_dataset("negative", 10)
    monkeypatch.setattr(archs, "build", small_network)
    source, args = pair(
        {"rewind_iter": k, "optimizer": "sgd", "lr": 0.1},
        dataset="negative",
        rewind_iter=k,
        lr_milestones=K + 3,
        weight_decay=1e-3,
    )
    main.main(source)
    masks, weights = masks_of(source), initial_weights(source)
    untrained = main.new_model(source, 0).state_dict()
    assert same(weights, untrained) == (k == 0)
    starts.clear()
    main.main(args)

    assert same(masks_of(args), masks)
    assert same(initial_weights(args), weights)
    for round_, (state, found) in enumerate(starts):
        assert same(found, masks[round_])
        assert same(state, masked(weights, masks[round_]))
    assert len(starts) == 3
    steps = (1437 - 300) // 60
    optimizer = partial(torch.optim.Adam, weight_decay=1e-3, fused=True)
    check_training(
        args,
        starts,
        optimizer,
        range(k, steps),
        lambda _, iteration: RATE * 0.1 ** (iteration >= K + 3),
    )
    first = {(row["round"], row["iteration"]) for row in log_rows(args) if "train_loss" not in row}
    assert first == {(0, k), (1, k), (2, k)}


@pytest.mark.parametrize("flags", [{}, {"one_shot": True}, {"criterion": "snip"}])
def test_reinit_has_the_masks_and_new_weights(flags, pair, starts):
    """Whatever iteration the source rewinds to."""
    source, args = pair(flags | {"rewind_iter": K}, prune_type="reinit", lr=0.01, **flags)
    main.main(source)
    starts.clear()
    main.main(args)
    for round_, (state, masks) in enumerate(starts):
        assert same(masks, ticket(source, round_)["masks"])
        assert same(state, masked(main.new_model(args, round_).state_dict(), masks))
    assert {row["iteration"] for row in log_rows(args) if "train_loss" not in row} == {0}


def test_random_has_the_weights_and_as_many_survivors(pair, starts):
    flags = {"rewind_iter": K, "prune_scope": "global"}
    source, args = pair(flags, prune_type="random", lr=0.01, **flags)
    main.main(source)
    weights = initial_weights(source)
    starts.clear()
    main.main(args)
    for round_, (state, masks) in enumerate(starts):
        assert same(state, masked(weights, masks))
        for name, mask in ticket(source, round_)["masks"].items():
            assert masks[name].sum() == mask.sum()
            assert torch.equal(masks[name], mask) == (round_ == 0)
    assert {row["iteration"] for row in log_rows(args) if "train_loss" not in row} == {K}


@pytest.mark.parametrize("kind", ["shuffle", "lr_rewind"])
def test_other_prune_types_have_the_masks_and_their_own_weights(kind, pair, starts):
    source, args = pair({"rewind_iter": K}, prune_type=kind, lr=0.01)
    main.main(source)
    masks = masks_of(source)
    starts.clear()
    main.main(args)
    initial = main.new_model(args, 0).state_dict()
    assert same(starts[0][0], initial)
    for round_ in (1, 2):
        state, found = starts[round_]
        assert same(found, masks[round_])
        if kind == "lr_rewind":
            assert same(state, masked(ticket(args, round_ - 1)["final"], found))
        for name, mask in found.items() if kind == "shuffle" else ():
            assert torch.equal(state[name][mask].sort().values, initial[name][mask].sort().values)


def test_a_source_with_the_same_settings_gives_its_own_results(pair):
    source, args = pair({"prune_percent_output": 10}, prune_percent_output=10)
    main.main(source)
    main.main(args)
    assert arrays(args) == arrays(source)


def test_sparse_layers_train_the_same_tickets(pair, tmp_path, monkeypatch, capsys):
    layers = []
    make_sparse = main.make_sparse
    monkeypatch.setattr(main, "make_sparse", lambda *rest: layers.append(make_sparse(*rest)))
    source, sparse = pair({"rewind_iter": K, "sparse_below": 0}, rewind_iter=K, sparse_below=99)
    main.main(source)
    assert not layers
    main.main(sparse)
    assert layers
    assert "running without" not in capsys.readouterr().out
    assert same(initial_weights(sparse), initial_weights(source))
    assert same(masks_of(sparse), masks_of(source))
    for round_ in (1, 2):
        for name, tensor in ticket(source, round_)["final"].items():
            found = ticket(sparse, round_)["final"][name]
            torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-4)


def test_each_trial_has_the_tickets_of_its_seed(pair, starts, capsys):
    source, args = pair({"trials": 2, "seed": 3}, trials=2, seed=3, lr=0.01)
    main.main(source)
    found = list(starts)
    starts.clear()
    main.main(args)
    assert same([list(start) for start in starts], [list(start) for start in found])
    assert not torch.equal(starts[0][0]["1.weight"], starts[3][0]["1.weight"])


# Another number of classes


@pytest.mark.parametrize("arch_type", ["fc1", "lenet5"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_an_output_layer_of_another_size_is_its_own_and_dense(
    arch_type, scope, pair, new_dataset, starts, capsys, monkeypatch
):
    new_dataset("hundred", 100)
    flags = {"rewind_iter": K, "arch_type": arch_type, "prune_scope": scope, "max_iter": 9}
    flags |= {"eval_iter": 9, "val_size": 1300}
    source, args = pair(flags, dataset="hundred", **flags)
    main.main(source)
    masks, weights = masks_of(source), initial_weights(source)
    starts.clear()
    capsys.readouterr()
    main.main(args)

    own = main.new_model(args, 0).state_dict()
    *_, weight, bias = own
    assert len(own[weight]) == 100
    for round_, (state, found) in enumerate(starts):
        assert found[weight].all()
        expected = masked(weights, masks[round_]) | {weight: own[weight], bias: own[bias]}
        assert same(state, expected)
        assert same(found, masks[round_] | {weight: torch.ones_like(own[weight]).bool()})
    output = capsys.readouterr().out
    assert f"\ntickets: those of lt on digits, in {args.tickets_from}\n" in output
    assert f"{bias}, {weight}: dense and from its own initialization, because" in output
    share = re.search(r"(\S+)% of them remain in the last round", output)
    remaining = np.load(utils.Files(args).array("compression"))
    assert len(remaining) == 3
    if scope == "layer":
        assert float(share[1]) == pytest.approx(remaining[-1], abs=0.006)
    else:
        assert share is None


def test_new_weights_for_masks_of_other_classes(pair, new_dataset, starts, capsys):
    new_dataset("hundred", 100)
    source, args = pair(prune_type="reinit", dataset="hundred")
    main.main(source)
    masks = masks_of(source)
    starts.clear()
    main.main(args)
    for round_, (state, found) in enumerate(starts):
        assert found["5.weight"].all()
        assert torch.equal(found["1.weight"], masks[round_]["1.weight"])
        assert same(state, masked(main.new_model(args, round_).state_dict(), found))
    assert "\n5.weight: dense and" in capsys.readouterr().out


FITS = {"a.weight": torch.ones(4, 3), "b.weight": torch.ones(10, 4), "b.bias": torch.ones(10)}
WIDER = torch.ones(20, 4)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, []),
        ({"b.weight": WIDER, "b.bias": torch.ones(20)}, ["b.weight", "b.bias"]),
        ({"b.weight": WIDER}, ["b.weight"]),  # a layer whose bias is left out of masks
        ({"a.weight": torch.ones(5, 3), "b.weight": torch.ones(10, 5)}, None),
        ({"a.weight": torch.ones(5, 3), "b.weight": WIDER}, None),
        ({"a.weight": torch.ones(4, 2)}, None),
        ({"b.weight": torch.ones(10, 4, 1)}, None),
        ({"b.weight": torch.ones(10, 4, dtype=torch.float64)}, None),
        ({"b.weight": None}, None),
        ({"b.weight": 3}, None),
        ({"c.weight": torch.ones(3)}, None),
    ],
)
def test_only_the_number_of_outputs_may_differ(change, missing):
    found = FITS | change
    if missing is None:
        with pytest.raises(utils.BadInput, match=r"^the file is of another network"):
            utils.fitting(found, FITS, "the file")
        return
    expected = {name: tensor for name, tensor in FITS.items() if name not in missing}
    assert same(utils.fitting(found, FITS, "the file"), expected)


# Sources that cannot be used


@pytest.mark.parametrize(
    ("flags", "problem", "remedy"),
    [
        ({"tickets_from": "nowhere"}, r"nowhere/0_model_lt\.pth\.tar is missing", ""),
        (
            {"prune_iterations": 2},
            r"/1_model_lt\.pth\.tar is missing",
            "Give --prune_iterations=1, or let that run finish 2 rounds, or give the folder",
        ),
        ({"seed": 1}, r"seed1/0_model_lt\.pth\.tar is missing", "with --seed=1"),
        ({"arch_type": "lenet5"}, "with --arch_type=fc1, not lenet5", "Give --arch_type=fc1, or"),
        ({"rewind_iter": 0}, f"with --rewind_iter={K}, not 0", f"Give --rewind_iter={K}, or"),
        (
            {"rewind_iter": 0, "prune_type": "random"},
            f"with --rewind_iter={K}, not 0",
            f"Give --rewind_iter={K}, or",
        ),
        ({"prune_percent": 30}, "with --prune_percent=20, not 30", "Give --prune_percent=20"),
        ({"prune_percent_output": 5}, "with --prune_percent_output=20, not 5", "Give"),
        ({"prune_scope": "global"}, "with --prune_scope=layer, not global", "Give"),
        ({"criterion": "movement"}, "with --criterion=magnitude, not movement", "Give"),
        ({"one_shot": True}, "with --one_shot=False, not True", "Leave out --one_shot, or"),
        (
            {"dataset": "cifar10"},
            r"whose 1.weight has the shape \(300, 784\), not \(300, 3072\)",
            "",
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_refused_before_training(
    flags, problem, remedy, pair, check_refused
):
    usual = {"rewind_iter": K, "prune_iterations": 1}
    source, args = pair(usual, **usual | flags)
    main.main(source)
    check_refused(args, "tickets_from", problem, remedy, "an lt run")


def test_the_folder_of_the_run_itself_is_refused(pair):
    source, _ = pair()
    main.main(source)
    before = arrays(source)
    source.tickets_from = Path(utils.Files(source).saves.parent, ".", "digits")
    with pytest.raises(utils.BadInput, match=r"tickets of this very run\. Choose another --out"):
        main.main(source)
    source.tickets_from = None
    main.main(source)
    assert arrays(source) == before


def test_tickets_of_a_run_that_has_them_from_another_one_name_that_one(pair, tmp_path):
    source, args = pair()
    main.main(source)
    main.main(args)
    third = pair(output_dir=tmp_path / "third", tickets_from=utils.Files(args).saves)[1]
    remedy = rf"Give --tickets_from={args.tickets_from} instead, as seen from where that run was"
    with pytest.raises(utils.BadInput, match=rf"ticket of the run in .*\. {remedy}"):
        main.main(third)
    masks_from = pair({"prune_type": "reinit", "masks_from": "lt", "output_dir": args.output_dir})
    with pytest.raises(utils.BadInput, match=rf"ticket of the run in .*\. {remedy}"):
        main.main(masks_from[0])


@pytest.mark.parametrize("iterations", [K - 1, K + 1])
def test_a_source_must_have_reached_its_iteration_k(iterations, pair, stop_after):
    """Until then, its initial weights are those of iteration 0."""
    flags = {"rewind_iter": K, "prune_iterations": 1}
    source, args = pair(flags, **flags)
    stop_after(iterations, source)
    assert same(initial_weights(source), main.new_model(source, 0).state_dict()) == (iterations < K)
    with pytest.raises(utils.BadInput, match=r"0_model_lt\.pth\.tar is missing\. Give the folder"):
        main.main(args)


@pytest.mark.parametrize("flag", ["tickets_from", "masks_from"])
def test_a_ticket_of_another_round_is_refused(flag, pair):
    source, args = pair(prune_type="reinit")
    main.main(source)
    if flag == "masks_from":
        args.tickets_from, args.masks_from, args.output_dir = None, "lt", source.output_dir
    files = utils.Files(source)
    shutil.copy(files.ticket(2), files.ticket(1))
    with pytest.raises(utils.BadInput, match=r"/1_model_lt\.pth\.tar is the ticket of round 2\."):
        main.main(args)


@pytest.mark.parametrize("flag", ["tickets_from", "masks_from"])
def test_tickets_of_several_runs_are_refused(flag, pair, tmp_path):
    setting = "lr" if flag == "tickets_from" else "rewind_iter"
    source, args = pair(prune_type="reinit")
    main.main(source)
    other = pair({"output_dir": tmp_path / "other", setting: 1})[0]
    main.main(other)
    if flag == "masks_from":
        args.tickets_from, args.masks_from, args.output_dir = None, "lt", source.output_dir
    files = utils.Files(source)
    shutil.copy(utils.Files(other).ticket(0), files.ticket(0))
    with pytest.raises(utils.BadInput, match=rf"{files.ticket(1)} is of another run than that"):
        main.main(args)


def test_only_the_output_layer_may_have_another_shape(pair, new_dataset, own, monkeypatch):
    """Even if another one differs in its first dimension only."""
    new_dataset("small", 10)
    facts = own / "small/__init__.py"
    facts.write_text(
        facts.read_text().replace("28,", "14,").replace("images,", "images[..., ::2, ::2],")
    )
    (own / "common/patches.py").write_text(PATCHES)
    flags = {"arch_type": "patches", "max_iter": 1}
    source, args = pair(flags, dataset="small", **flags)
    main.main(source)
    monkeypatch.setattr(main, "load_data", None)
    with pytest.raises(utils.BadInput, match="the shape of place differs, which is not the output"):
        main.main(args)


def test_a_folder_of_a_seed_is_refused_with_advice_that_works(pair):
    source, args = pair({"seed": 1}, seed=1)
    main.main(source)
    wrong = pair(tickets_from=Path(args.tickets_from, "seed1"))[1]
    advice = r"--seed=1, not 0\. Give the folder saves/<arch>/<dataset>, without that of a seed"
    with pytest.raises(utils.BadInput, match=advice):
        main.main(wrong)
    main.main(args)


@pytest.mark.parametrize(("kind", "problem"), [("file", "missing"), ("loop", "damaged")])
def test_what_is_no_folder_is_refused(kind, problem, pair, tmp_path):
    path = tmp_path / "no folder"
    if kind == "file":
        path.write_text("")
    else:
        path.symlink_to(path)
    with pytest.raises(utils.BadInput, match=rf"no folder/0_model_lt\.pth\.tar is {problem}"):
        main.main(pair(tickets_from=path)[1])


def change_masks(source):
    path = utils.Files(source).ticket(2)
    content = torch.load(path, weights_only=True)
    content["masks"]["5.weight"][:] = False
    torch.save(content, path)


CHANGES = [change_initial, change_masks]


@pytest.mark.parametrize("stop", [None, 25])
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_has_changed_is_refused_on_resuming(change, stop, pair, stop_after):
    source, args = pair()
    main.main(source)
    if stop:
        stop_after(stop, args)
    else:
        main.main(args)
    before = arrays(args)
    change(source)
    folder = utils.Files(source).saves
    message = rf"has results with other tickets than there are now in {folder}\. Choose another"
    with pytest.raises(utils.BadInput, match=message):
        main.main(args)
    assert arrays(args) == before
    reinit = pair(prune_type="reinit")[1]
    main.main(reinit)


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_during_a_run_is_refused(change, pair, monkeypatch):
    source, args = pair()
    main.main(source)
    train = main.train

    def change_after_training(args, state, *rest):
        train(args, state, *rest)
        if state.round == 1:
            change(source)

    monkeypatch.setattr(main, "train", change_after_training)
    with pytest.raises(utils.Failure, match=r"the tickets in .* have changed since this run"):
        main.main(args)
    assert finished_rounds(args) == 2


def test_other_trials_train_if_the_source_of_one_has_changed(pair, monkeypatch, capsys):
    source, args = pair({"trials": 2}, trials=2)
    main.main(source)
    reset = main.reset

    def change_after_reset(args, state, masks):
        reset(args, state, masks)
        if args.seed == 0 and state.round == 1 and utils.Files(args).checkpoint.exists():
            utils.Files(source).ticket(2).unlink(missing_ok=True)

    monkeypatch.setattr(main, "reset", change_after_reset)
    with pytest.raises(utils.Failure, match="have changed since"):
        main.main(args)
    assert [finished_rounds(pair(seed=seed)[1]) for seed in (0, 1)] == [2, 3]
    assert "failed: the tickets in" in capsys.readouterr().err


def test_weights_that_change_before_the_first_round_are_refused(pair, monkeypatch):
    source, args = pair()
    main.main(source)
    prepare = main.prepare

    def change_after_checks(*rest):
        change_initial(source)
        return prepare(*rest)

    monkeypatch.setattr(main, "prepare", change_after_checks)
    with pytest.raises(utils.Failure, match=r"the tickets in .* have changed since this run"):
        main.main(args)
    assert not utils.Files(args).checkpoint.exists()


def test_none_is_no_source():
    """As after an error that says that existing results have --tickets_from=none."""
    args = main.parse_args(["--tickets_from=none", "--paper", "--prune_type=reinit"])
    assert (args.tickets_from, args.masks_from) == (None, "lt")


@pytest.mark.parametrize(
    ("flags", "advice"),
    [
        (["--prune_type=reinit", "--masks_from=lt"], "--masks_from is not for --tickets_from"),
        (["--rewind_iter=5", "--prune_type=reinit"], "only lt and random"),
        (["--tickets_from="], "must not be empty"),
    ],
)
def test_flags_that_contradict_it_are_one_line(flags, advice, capsys):
    with pytest.raises(SystemExit):
        main.parse_args(["--tickets_from=a", *flags])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert advice in error


# Records, resuming, and what comes next


def test_a_run_records_settings_and_checksums_of_its_source(pair):
    source, args = pair({"lr": 0.01, "rewind_iter": K}, rewind_iter=K)
    main.main(source)
    main.main(args)
    weights = b"".join(tensor.numpy().tobytes() for tensor in initial_weights(source).values())
    expected = [
        zlib.crc32(b"".join(mask.numpy().tobytes() for mask in masks.values()) + weights)
        for masks in masks_of(source)
    ]
    record = json.loads(utils.Files(args).settings.read_text())["settings"]
    assert record["masks_from_checksums"] == expected
    assert record["masks_from_settings"]["lr"] == 0.01
    assert record["masks_from_settings"].keys() == (
        ticket(source, 0)["args"].keys() - utils.MAY_CHANGE_ON_RESUME - {"seed"}
    )
    assert record["tickets_from"] == args.tickets_from


@pytest.mark.parametrize("kind", ["lt", "random", "reinit"])
def test_a_run_resumes_at_every_iteration(kind, pair, stop_after, tmp_path, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    k = 0 if kind == "reinit" else 3
    flags = {"max_iter": 5, "batch_size": 300, "prune_iterations": 2}
    source, _ = pair(flags | {"rewind_iter": k})
    main.main(source)
    flags |= {"rewind_iter": k, "prune_type": kind, "lr": 0.01}
    expected = pair(output_dir=tmp_path / "undisturbed", **flags)[1]
    main.main(expected)
    for stop in range(1, 2 * (5 - k) + 1):
        args = pair(output_dir=tmp_path / str(stop), **flags)[1]
        stop_after(stop, args)
        main.main(args)
        assert arrays(args) == arrays(expected), stop
        assert same(ticket(args, 1)["final"], ticket(expected, 1)["final"])


def test_more_rounds_use_more_tickets(pair, tmp_path):
    main.main(pair({"prune_iterations": 4})[0])
    for rounds in (2, 4):
        main.main(pair(prune_iterations=rounds)[1])
    at_once = pair(prune_iterations=4, output_dir=tmp_path / "at once")[1]
    main.main(at_once)
    assert arrays(pair()[1]) == arrays(at_once)


@pytest.mark.parametrize("settings", [{}, {"rewind_iter": 5}, {"one_shot": True}])
def test_the_next_command_is_the_control(settings):
    flags = ["--tickets_from=a", *(f"--{name}={settings[name]}" for name in settings)]
    flags = [flag.removesuffix("=True") for flag in flags]
    args = main.parse_args(flags)
    *_, following = main.closing(args, flags).splitlines()
    command = shlex.split(following.removeprefix("next: python3 main.py "))
    control = main.parse_args(command)
    assert vars(control) == vars(args) | {"prune_type": "reinit", "rewind_iter": 0}


@pytest.mark.parametrize("kind", ["lt", "reinit", "random"])
def test_the_papers_settings_add_no_other_masks(kind, capsys):
    args = main.parse_args(["--paper", f"--prune_type={kind}", "--tickets_from=a"])
    assert (args.masks_from, args.tickets_from, args.max_iter) == (None, "a", 50000)
    assert "masks_from" not in capsys.readouterr().out


# Curves


def curves_of(*folders):
    found = [files for folder in folders for files in utils.find_results(folder)]
    runs, _ = combine_plots.read_runs([files for files in found if files.dataset == "negative"])
    return runs.groupby("curve", sort=False)["seed"].unique().apply(list).to_dict()


def test_curves_are_named_by_the_settings_of_their_sources(pair, new_dataset, tmp_path, capsys):
    new_dataset("negative", 10)
    own, there = tmp_path / "own", tmp_path / "source"
    flags = {"prune_iterations": 2, "trials": 2}
    for kind in ({}, {"prune_type": "reinit", "masks_from": "lt"}):
        main.main(pair(flags | {"dataset": "negative", "output_dir": own} | kind)[0])
    main.main(pair(flags)[0])
    for kind in ("lt", "reinit", "random"):
        main.main(pair(**flags, prune_type=kind, dataset="negative", output_dir=tmp_path / "t")[1])
    seeds = ["0", "1"]
    assert curves_of(own, tmp_path / "t") == {
        "lt": seeds,
        "lt, source's tickets, source's dataset=digits": seeds,
        "reinit, lt's masks": seeds,
        "reinit, source's masks, source's dataset=digits": seeds,
        "random, source's weights, source's dataset=digits": seeds,
    }
    assert curves_of(tmp_path / "t") == {
        "lt, source's tickets": seeds,
        "reinit, source's masks": seeds,
        "random, source's weights": seeds,
    }
    assert "not averaged" not in capsys.readouterr().err

    # Another source of the same dataset, in a folder of another name.
    other = tmp_path / "other"
    main.main(pair(flags | {"lr": 0.01, "output_dir": other})[0])
    folder = other / utils.Files(pair()[0]).saves.relative_to(there)
    main.main(pair(**flags, dataset="negative", output_dir=tmp_path / "u", tickets_from=folder)[1])
    assert curves_of(tmp_path / "t", tmp_path / "u") == {
        "lt, source's tickets, source's lr=0.0012": seeds,
        "lt, source's tickets, source's lr=0.01": seeds,
        "reinit, source's masks, source's lr=0.0012": seeds,
        "random, source's weights, source's lr=0.0012": seeds,
    }


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (  # which is not the default of the dataset
            ({"val_size": 100}, {}),
            ({"val_size": 200}, {}),
            ["source's val_size=100", "source's val_size=200"],
        ),
        (  # the same as their own ones, which does not have to be so
            ({"lr": 0.01}, {"lr": 0.01}),
            ({}, {}),
            ["lr=0.01, source's lr=0.01", "lr=0.0012, source's lr=0.0012"],
        ),
        (({"lr": 0.01}, {"lr": 0.01}), ({"lr": 0.01}, {}), ["lr=0.01", "lr=0.0012"]),
        (  # what must be the same is named once
            ({"rewind_iter": K}, {"rewind_iter": K}),
            ({}, {}),
            [f"rewind_iter={K}", "rewind_iter=0"],
        ),
        (
            ({"prune_percent": 30}, {"prune_percent": 30}),
            ({}, {}),
            ["prune_percent=30", "prune_percent=20"],
        ),
    ],
)
def test_curves_of_different_sources_are_told_apart(
    first, second, names, pair, new_dataset, tmp_path
):
    """`first` and `second` are the flags of two sources, and of the runs that use them."""
    new_dataset("negative", 10)
    expected = {}
    for seed, (of_source, of_user) in enumerate((first, second)):
        flags = {"prune_iterations": 1, "seed": seed}
        place = tmp_path / str(seed)
        source, _ = pair(flags | of_source | {"output_dir": place / "source"})
        main.main(source)
        flags |= of_user | {"dataset": "negative", "output_dir": place / "user"}
        main.main(pair(**flags, tickets_from=place / "source/saves/fc1/digits")[1])
        expected[f"lt, source's tickets, {names[seed]}"] = [str(seed)]
    folders = [tmp_path / "0/user", tmp_path / "1/user"]
    assert curves_of(*folders) == expected

    with_own = {"dataset": "negative", "prune_iterations": 1, "seed": 2}
    main.main(pair(with_own | {"output_dir": tmp_path / "own"})[0])
    assert sorted(curves_of(*folders, tmp_path / "own").values()) == [["0"], ["1"], ["2"]]


def test_a_copy_of_a_source_gives_the_same_curve(pair, new_dataset, tmp_path):
    """Curves are not named by paths."""
    new_dataset("negative", 10)
    source, args = pair(prune_iterations=1, dataset="negative")
    main.main(source)
    main.main(args)
    shutil.copytree(source.output_dir, tmp_path / "copy")
    folder = Path(tmp_path / "copy", *Path(args.tickets_from).parts[-3:])
    flags = {"prune_iterations": 1, "dataset": "negative", "seed": 1}
    source, args = pair({"seed": 1, "output_dir": tmp_path / "copy"}, tickets_from=folder, **flags)
    main.main(source)
    main.main(args)
    assert curves_of(args.output_dir) == {"lt, source's tickets": ["0", "1"]}
