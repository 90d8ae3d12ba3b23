"""Recipes of training: AdamW, Nesterov's momentum, the cosine, label smoothing, rates by layer."""

import json
import math
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler

import archs
import combine_plots
import main
import utils
from conftest import (
    arrays,
    check_training,
    log_rows,
    losses_of,
    same,
    small_network,
    ticket,
    train_plainly,
    trial_data,
)

pytestmark = pytest.mark.usefixtures("undrawn")

ADAMW = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.5}
NESTEROV = {"optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 0.01}
OTHERS = {"lr_schedule": "cosine", "warmup_iter": 2, "label_smoothing": 0.1}
RECIPES = {"adamw": ADAMW | OTHERS, "nesterov": NESTEROV | OTHERS}
MINE = """
from torch import nn

PRUNE_PERCENT = {rates}


def build(channels, size, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 5, stride=3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 20),
        nn.ReLU(),
        nn.Linear(20, classes),
    )
"""


@pytest.fixture
def mine(own, small_args):
    """A function that writes a network's file and returns settings: mine({name: rate}, lr=0.1)."""

    def make(rates, **flags):
        (own / "common/mine.py").write_text(MINE.format(rates=rates))
        sys.modules.pop("archs.common.mine", None)
        return small_args(arch_type="mine", **flags)

    return make


def rates_of_torch(args, end):
    """Return the learning rates of a round by torch's schedulers."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.lr)
    cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=end - args.warmup_iter)
    scheduler = cosine
    if args.warmup_iter:
        first = 1 / args.warmup_iter
        warmup = lr_scheduler.LinearLR(optimizer, first, total_iters=args.warmup_iter - 1)
        scheduler = lr_scheduler.SequentialLR(
            optimizer, [warmup, cosine], milestones=[args.warmup_iter]
        )
    rates = []
    for _ in range(end):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# The schedule


@pytest.mark.parametrize("warmup", [0, 2, 10, 39])
def test_the_cosine_is_that_of_torch(warmup, small_args):
    args = small_args(lr_schedule="cosine", lr=0.3, warmup_iter=warmup)
    rates = [main.learning_rate(args, 0, iteration, 40) for iteration in range(40)]
    assert rates == pytest.approx(rates_of_torch(args, 40), rel=1e-12)
    assert max(rates) == 0.3
    assert rates[-1] < 0.3 / 2 or warmup == 39


@pytest.mark.parametrize("end", [1, 7, 40])
def test_a_warmup_must_leave_an_iteration_for_the_cosine(end, small_args, monkeypatch):
    flags = {"warmup_iter": end, "max_iter": end}
    message = f"--warmup_iter={end} is not within a round, which has {end} iterations"
    with monkeypatch.context() as patch, pytest.raises(utils.BadInput, match=message):
        patch.setattr(main, "train", None)
        main.main(small_args(lr_schedule="cosine", **flags))
    main.main(small_args(lr_schedule="cosine", **flags | {"warmup_iter": end - 1}))
    main.main(small_args(**flags, output_dir=f"{small_args().output_dir}/step"))


@pytest.mark.parametrize("kind", [kind for kind in main.PRUNE_TYPES if kind != "finetune"])
def test_every_round_has_the_whole_cosine(kind, small_args, starts, monkeypatch):
    """The weights have the same bits as with torch.optim's class, which starts afresh."""
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(prune_type=kind, prune_iterations=2, max_iter=9, **RECIPES["adamw"])
    main.main(args)
    optimizer = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5, fused=True)

    def rate(round_, iteration):
        if iteration < 2:
            return 0.01 * (iteration + 1) / 2
        return 0.01 * (1 + math.cos(math.pi * (iteration - 2) / 7)) / 2

    check_training(args, starts, optimizer, range(9), rate)


# The loss


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.9])
def test_labels_are_smoothed_in_the_training_loss_only(smoothing, small_args, starts, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(prune_iterations=1, label_smoothing=smoothing)
    main.main(args)
    data = trial_data(args)
    (state, masks), *_ = starts
    adam = partial(torch.optim.Adam, fused=True)
    _, losses = train_plainly(args, state, masks, data, 0, adam, range(40), lambda _: 1.2e-3)
    assert losses_of(args) == pytest.approx([np.mean(losses[:20]), np.mean(losses[20:])])

    model = small_network().eval()
    model.load_state_dict(ticket(args, 0)["final"])
    images, labels = data.val
    with torch.no_grad():
        plain = F.cross_entropy(model(data.normalize(images)), labels).item()
    assert log_rows(args)[-1]["val_loss"] == pytest.approx(plain)


@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_criteria_have_the_loss_without_smoothing(criterion, small_args, tmp_path):
    masks = []
    for smoothing in (0, 0.3):
        args = small_args(
            criterion=criterion,
            prune_scope="global",
            label_smoothing=smoothing,
            prune_iterations=2,
            max_iter=1,
            output_dir=tmp_path / str(smoothing),
        )
        main.main(args)
        masks.append(ticket(args, 1)["masks"])
    assert same(*masks)


# Whole recipes


CLASSES = {
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.5),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_as_with_torchs_classes(name, mine, starts):
    """With its schedulers, which round in another way, and not with closed formulas."""
    args = mine({"*": 30, "7.weight": 0}, max_iter=25, **RECIPES[name])
    main.main(args)
    rates = rates_of_torch(args, 25)
    data = trial_data(args)
    for round_, (state, masks) in enumerate(starts):
        expected, losses = train_plainly(
            args, state, masks, data, round_, CLASSES[name], range(25), rates.__getitem__
        )
        for key, tensor in ticket(args, round_)["final"].items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)
        logged = np.load(utils.Files(args).array(f"all_loss_{round_}"))
        assert logged == pytest.approx([np.mean(losses[:20]), np.mean(losses[20:])], rel=1e-5)


@pytest.mark.parametrize("rewind_iter", [0, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_resumes_at_every_iteration(name, rewind_iter, mine, stop_after, tmp_path):
    flags = {"max_iter": 5, "batch_size": 300, "prune_iterations": 2, "rewind_iter": rewind_iter}
    make = partial(mine, {"*": 30, "7.weight": 0}, **flags | RECIPES[name])
    expected = make(output_dir=tmp_path / "undisturbed")
    main.main(expected)
    for stop in range(1, 10 - rewind_iter + 1):
        args = make(output_dir=tmp_path / str(stop))
        stop_after(stop, args)
        main.main(args)
        assert arrays(args) == arrays(expected), stop
        assert same(ticket(args, 1)["final"], ticket(expected, 1)["final"])


def test_in_a_round_that_starts_at_k_the_cosine_goes_on_from_k(small_args, starts):
    args = small_args(rewind_iter=33, prune_iterations=2, lr_schedule="cosine")
    main.main(args)
    state, masks = starts[1]
    expected, _ = train_plainly(
        args,
        state,
        masks,
        trial_data(args),
        1,
        partial(torch.optim.Adam, fused=True),
        range(33, 40),
        lambda iteration: 1.2e-3 * (1 + math.cos(math.pi * iteration / 40)) / 2,
    )
    assert same(ticket(args, 1)["final"], dict(expected))


@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_adamw_without_weight_decay_is_adam_and_says_so(weight_decay, small_args, tmp_path, capsys):
    found = []
    for optimizer in ("adam", "adamw"):
        args = small_args(
            optimizer=optimizer,
            weight_decay=weight_decay,
            prune_iterations=1,
            output_dir=tmp_path / optimizer,
        )
        main.main(args)
        found.append(losses_of(args).tolist())
        note = "--optimizer=adamw without --weight_decay is the same as adam\n"
        expected = optimizer == "adamw" and weight_decay == 0
        assert (note in capsys.readouterr().out) == expected
    assert (found[0] == found[1]) == (weight_decay == 0)


# The paper's settings


PAPER = "PAPER = '--dataset=digits --lr=0.1 {}'\n\n"


def parse_paper(own, papers, *flags):
    """Return the settings of a network whose PAPER has the flags `papers`."""
    (own / "common/mine.py").write_text(PAPER.format(papers) + MINE.format(rates={}))
    return main.parse_args(["--arch_type=mine", "--paper", *flags])


def test_paper_may_have_all_flags_of_a_recipe(own):
    papers = "--optimizer=sgd --nesterov --lr_schedule=cosine --warmup_iter=5 --label_smoothing=0.1"
    args = parse_paper(own, papers)
    assert args == main.parse_args(
        ["--arch_type=mine", "--dataset=digits", "--lr=0.1", *papers.split()]
    )
    assert (args.optimizer, args.nesterov, args.lr_schedule) == ("sgd", True, "cosine")
    assert (args.warmup_iter, args.label_smoothing) == (5, 0.1)


@pytest.mark.parametrize(
    ("papers", "given", "schedule", "milestones", "kept"),
    [
        ("--lr_milestones=20,30", [], "step", [20, 30], True),
        ("--lr_milestones=20,30", ["--lr_schedule=cosine"], "cosine", [], False),
        ("--lr_milestones=20,30", ["--lr_schedule=step"], "step", [20, 30], True),
        ("--lr_schedule=cosine", [], "cosine", [], True),
        ("--lr_schedule=cosine", ["--lr_milestones=7"], "step", [7], False),
        ("--lr_schedule=cosine", ["--lr_milestones=none"], "cosine", [], True),
        ("--lr_schedule=cosine", ["--lr_schedule=step"], "step", [], False),
    ],
)
def test_a_schedule_that_is_given_replaces_papers(
    papers, given, schedule, milestones, kept, own, capsys
):
    args = parse_paper(own, papers, *given)
    assert (args.lr_schedule, args.lr_milestones) == (schedule, milestones)
    line, *_ = capsys.readouterr().out.splitlines()
    assert (papers in line) == kept


def test_nesterov_of_paper_can_be_turned_off(own, capsys):
    args = parse_paper(own, "--optimizer=sgd --nesterov", "--no-nesterov", "--optimizer=adam")
    assert (args.optimizer, args.nesterov) == ("adam", False)
    with pytest.raises(SystemExit):
        parse_paper(own, "--optimizer=sgd --nesterov", "--optimizer=adam")
    assert "--no-nesterov turns it off" in capsys.readouterr().err


# Rates by layer


def layer_counts(args, round_):
    """Return how many weights each layer keeps in a round."""
    return {name: int(mask.sum()) for name, mask in ticket(args, round_)["masks"].items()}


@pytest.mark.parametrize(
    ("rates", "expected", "shown"),
    [
        ({}, [15, 20, 5], "15% for 0.weight; 20% for 5.weight; 5% for 7.weight"),
        ({"5.weight": 0}, [15, 0, 5], "15% for 0.weight; 0% for 5.weight; 5% for 7.weight"),
        ({"*": 50}, [50, 50, 50], "50% for 0.weight, 5.weight, 7.weight"),
        (
            {"*": 50, "5.weight": 12.5},
            [50, 12.5, 50],
            "50% for 0.weight, 7.weight; 12.5% for 5.weight",
        ),
        (  # the last match counts
            {"5.weight": 12.5, "*": 50},
            [50, 50, 50],
            "50% for 0.weight, 5.weight, 7.weight",
        ),
        (
            {"[05].weight": 40, "7.*": 30},
            [40, 40, 30],
            "40% for 0.weight, 5.weight; 30% for 7.weight",
        ),
    ],
)
@pytest.mark.parametrize("scope", main.SCOPES)
def test_layers_have_the_rates_of_the_file_or_else_those_of_flags(
    rates, expected, shown, scope, mine, capsys
):
    args = mine(rates, prune_percent_conv=15, prune_percent_output=5, prune_scope=scope, end_iter=1)
    main.main(args)
    names = ["0.weight", "5.weight", "7.weight"]
    assert f"\npruning rates: {shown}\n" in capsys.readouterr().out
    recorded = json.loads(utils.Files(args).settings.read_text())["settings"]["PRUNE_PERCENT"]
    assert recorded == [f"{name}:{float(rate)}" for name, rate in rates.items()]

    before = {"0.weight": 100, "5.weight": 5120, "7.weight": 200}
    assert layer_counts(args, 0) == before
    for round_ in (1, 2):
        after = layer_counts(args, round_)
        shares = {
            name: rate / 100 * before[name] for name, rate in zip(names, expected, strict=True)
        }
        if scope == "layer":
            assert after == {name: before[name] - round(shares[name]) for name in names}
        total = round(sum(shares.values()))
        assert sum(after.values()) == pytest.approx(sum(before.values()) - total, abs=1)
        for name, rate in zip(names, expected, strict=True):
            assert rate > 0 or after[name] == before[name]
        before = after


@pytest.mark.parametrize(
    ("rates", "flags", "shown"),
    [
        ({}, {}, False),
        ({"*": 20}, {}, False),
        ({"*": 25}, {}, True),
        ({}, {"prune_percent_output": 5}, True),
    ],
)
def test_rates_are_printed_unless_all_are_that_of_the_flag(rates, flags, shown, mine, capsys):
    main.main(mine(rates, **flags, prune_iterations=1, max_iter=1))
    assert ("pruning rates: " in capsys.readouterr().out) == shown


def test_a_run_with_the_masks_of_another_one_prints_no_rates(mine, capsys):
    """Its own output layer may stay dense."""
    flags = {"prune_iterations": 2, "max_iter": 1}
    source = mine({"7.weight": 5}, **flags)
    main.main(source)
    assert "pruning rates: " in capsys.readouterr().out
    saves, folder = utils.Files(source).saves, f"{source.output_dir}/moved"
    main.main(mine({"7.weight": 5}, **flags, tickets_from=saves, output_dir=folder))
    assert "pruning rates: " not in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["stem.weight", "7.bias", "1.weight", "", "weight"])
def test_a_pattern_that_matches_no_weight_is_refused(pattern, mine, monkeypatch):
    """Biases and batch norm are never pruned."""
    monkeypatch.setattr(main, "load_data", None)
    args = mine({"*": 30, pattern: 10})
    message = rf"mine.py: PRUNE_PERCENT: the pattern '{re.escape(pattern)}' matches none of the"
    with pytest.raises(utils.BadInput, match=message) as error:
        main.main(args)
    assert str(error.value).endswith("are 0.weight, 5.weight, 7.weight")


@pytest.mark.parametrize(
    "rates",
    [
        "{'*': 100}",
        "{'*': -1}",
        "{'*': float('nan')}",
        "{'*': '9'}",
        "{3: 9}",
        "[9]",
        "None",
        "{'*': __import__('torch').zeros(3, 3)}",  # is shown in three lines
    ],
)
def test_impossible_rates_are_one_line(rates, mine, capsys):
    with pytest.raises(SystemExit) as stop:
        mine(rates)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "mine.py: PRUNE_PERCENT must be {parameter name: percent in [0, 100)}, not " in error


def test_rates_of_0_percent_everywhere_are_refused(mine, monkeypatch):
    monkeypatch.setattr(main, "load_data", None)
    with pytest.raises(utils.BadInput, match="nothing of mine would be pruned"):
        main.main(mine({"*": 0}))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"5.weight": 0}),
        ({"5.weight": 0}, {}),
        ({"5.weight": 0}, {"5.weight": 1e-3}),
        ({"*": 30, "5.weight": 0}, {"5.weight": 0, "*": 30}),
    ],
)
def test_results_with_other_rates_are_other_results(first, second, mine):
    flags = {"end_iter": 1, "prune_iterations": 2}
    args = mine(first, **flags)
    main.main(args)
    before = arrays(args)
    for more in ({}, {"prune_iterations": 3}):
        with pytest.raises(utils.BadInput, match="has results with another PRUNE_PERCENT in the"):
            main.main(mine(second, **flags | more))
    control = {"prune_type": "reinit", "masks_from": "lt"}
    source = {"tickets_from": utils.Files(args).saves, "output_dir": f"{args.output_dir}/moved"}
    for use in (control, source):
        message = r"0_model_lt.pth.tar was made with another PRUNE_PERCENT .*\. Restore it, or"
        with pytest.raises(utils.BadInput, match=message):
            main.main(mine(second, **flags | use))
    assert arrays(args) == before
    main.main(mine(first, **flags | control))
    main.main(mine(first, **flags | source))


@pytest.mark.parametrize("rates", [{}, {"5.weight": 0}])
def test_results_from_before_rates_by_layer_have_none(rates, mine):
    args = mine({}, end_iter=1, prune_iterations=1)
    main.main(args)
    files = utils.Files(args)
    saved = torch.load(files.checkpoint, weights_only=True)
    for name in ("PRUNE_PERCENT", "lr_schedule", "nesterov", "label_smoothing"):
        del saved["args"][name]
    torch.save(saved, files.checkpoint)
    files.previous_checkpoint.unlink()
    later = mine(rates, end_iter=1, prune_iterations=2)
    if rates:
        with pytest.raises(utils.BadInput, match="another PRUNE_PERCENT"):
            main.main(later)
    else:
        main.main(later)
        assert len(np.load(files.array("compression"))) == 2


def test_curves_are_named_by_their_rates(mine, tmp_path):
    """Long lists by a checksum, because they would fill the figures."""
    long = {f"[0{'9' * n}].weight": n for n in range(8)}
    for name, rates in (("a", {}), ("b", {"5.weight": 0, "7.*": 5}), ("c", long)):
        main.main(mine(rates, end_iter=1, prune_iterations=2, output_dir=tmp_path / name))
    found = [files for name in "abc" for files in utils.find_results(tmp_path / name)]
    runs, _ = combine_plots.read_runs(found)
    names = list(dict.fromkeys(runs["curve"]))
    assert names[:2] == ["lt, PRUNE_PERCENT=none", "lt, PRUNE_PERCENT=5.weight:0.0,7.*:5.0"]
    assert re.fullmatch(r"lt, PRUNE_PERCENT=[0-9a-f]{8}", names[2])
