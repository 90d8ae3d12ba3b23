"""Stability: `--connect_to` repeats a run in another order and measures the error barrier."""

import itertools
import json
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import archs
import combine_plots
import main
import utils
from conftest import (
    arrays,
    change_initial,
    finished_rounds,
    initial_weights,
    log_rows,
    same,
    small_data,
    small_network,
    ticket,
    train_plainly,
    trial_data,
)

pytestmark = pytest.mark.usefixtures("undrawn")

K = 7
STEPS = (1437 - 200) // 60  # iterations of an epoch of digits
SGD = {"optimizer": "sgd", "lr": 0.1}


@pytest.fixture
def pair(small_args, tmp_path):
    """A function that returns the settings of a run and of one that is connected to it.

    pair({flag: value}, **{flag: value of the second run only}). Both have two rounds of an epoch.
    """

    def make(flags=(), **second):
        flags = {"end_iter": 1, "prune_iterations": 2} | dict(flags)
        first = small_args(**{"output_dir": tmp_path / "first"} | flags)
        folder = tmp_path / "first/saves" / first.arch_type / first.dataset
        return first, small_args(**{"connect_to": folder} | flags | second)

    return make


def barriers(args):
    return np.load(utils.Files(args).array("barrier"))


def last_rows(args):
    """Return the row of the end of each round."""
    return [row for row in log_rows(args) if "train_accuracy" in row]


# The null test: the same order gives the same bits, and no barrier

NULLS = {
    "plain": {},
    "rewound to mid-epoch": {"rewind_iter": K, "end_iter": 2},
    "rewound to the end of an epoch": {"rewind_iter": STEPS, "end_iter": 2} | SGD,
    "sparse layers": {"rewind_iter": K, "sparse_below": 99},
    "global": {"prune_scope": "global", "criterion": "movement", "rewind_iter": K},
    "one_shot": {"one_shot": True},
    "reinit": {"prune_type": "reinit", "masks_from": "lt"},
    "own masks": {"prune_type": "reinit", "criterion": "increase"},
    "random": {"prune_type": "random", "masks_from": "lt", "rewind_iter": K},
    "shuffle": {"prune_type": "shuffle"},
    "another seed": {"seed": 3, "rewind_iter": K},
}


def check_null(first, second):
    """Run the second; assert that it has the first one's bits, and no barrier in any round."""
    main.main(second)
    found = arrays(second)
    found.pop(f"{first.prune_type}_barrier.dat")
    expected = arrays(first)
    assert found == {name: expected[name] for name in expected if name.startswith(first.prune_type)}
    for round_ in range(first.prune_iterations):
        for name in ("model", "final", "masks"):
            assert same(ticket(second, round_)[name], ticket(first, round_)[name])
    assert barriers(second).tolist() == [0] * first.prune_iterations
    for row in last_rows(second):
        assert len(row["line_errors"]) == 30
        assert len(set(row["line_errors"])) == 1


@pytest.mark.parametrize("flags", NULLS.values(), ids=NULLS)
def test_the_same_order_gives_the_same_bits(flags, pair, capsys):
    first, second = pair(flags, order_seed=0)
    if first.masks_from:
        main.main(pair(flags | {"prune_type": "lt", "masks_from": "none"})[0])
    main.main(first)
    check_null(first, second)
    output = capsys.readouterr().out
    assert "note: both runs have the same order, so the barrier should be 0\n" in output
    assert "running without" not in output


@pytest.mark.parametrize("k", [0, K])
def test_the_same_order_with_batch_norm_dropout_and_augmentation(k, pair, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    first, second = pair({"augment": True, "rewind_iter": k} | SGD, order_seed=0)
    main.main(first)
    check_null(first, second)


@pytest.mark.parametrize("kind", ["lt", "random", "reinit"])
def test_the_same_order_with_tickets_of_another_run(kind, pair, own, small_args, tmp_path, capsys):
    """Which had another number of outputs."""
    facts = (own / "digits/__init__.py").read_text()
    shutil.copytree(own / "digits", own / "twenty")
    (own / "twenty/__init__.py").write_text(
        facts.replace("CLASSES = 1, 28, 10", "CLASSES = 1, 28, 20")
    )
    flags = {"dataset": "twenty", "rewind_iter": 0 if kind == "reinit" else K}
    source = small_args(
        rewind_iter=flags["rewind_iter"],
        end_iter=1,
        prune_iterations=2,
        output_dir=tmp_path / "source",
    )
    flags |= {"prune_type": kind, "tickets_from": tmp_path / "source/saves/fc1/digits"}
    first, second = pair(flags, order_seed=0)
    main.main(source)
    main.main(first)
    shutil.rmtree(tmp_path / "source")
    capsys.readouterr()
    check_null(first, second)
    assert ticket(second, 1)["masks"]["5.weight"].all()
    output = capsys.readouterr().out
    assert f"\ntickets: those of lt on digits, in {first.tickets_from}\n" in output
    assert "remain in the last round" not in output


def test_random_masks_are_not_drawn_again(pair, monkeypatch):
    """Another version of torch may draw others."""
    first, second = pair({"prune_type": "random"}, order_seed=0)
    main.main(first)
    monkeypatch.setattr(main, "random_masks", None)
    check_null(first, second)


# Another order


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"rewind_iter": K, "end_iter": 2},
        {"rewind_iter": STEPS, "end_iter": 2},
        {"prune_type": "reinit", "seed": 3},
        {"prune_type": "random", "rewind_iter": K},
    ],
)
def test_only_the_order_from_iteration_k_on_differs(flags, pair, starts, monkeypatch):
    """The optimizer's state is kept at K. Dropout follows from the order's seed, too."""
    monkeypatch.setattr(archs, "build", small_network)
    first, second = pair(flags | SGD, order_seed=5)
    main.main(first)
    found = list(starts)
    starts.clear()
    main.main(second)
    assert same([list(start) for start in starts], [list(start) for start in found])
    assert same(initial_weights(second), initial_weights(first))
    data = trial_data(second)
    for round_, (state, masks) in enumerate(starts):
        start = second.rewind_iter if round_ else 0
        expected, _ = train_plainly(
            second,
            state,
            masks,
            data,
            round_,
            partial(torch.optim.SGD, momentum=0.9, fused=True),
            range(start, STEPS * second.end_iter),
            lambda _: 0.1,
        )
        assert same(ticket(second, round_)["final"], expected)
        assert not same(ticket(first, round_)["final"], expected)


def test_a_run_without_connection_has_the_order_of_its_seed_and_of_order_seed(small_args, tmp_path):
    losses = {}
    for seed in (0, 1):
        for order in (0, 1, 2, 2**64 - 1):
            folder = tmp_path / f"{seed}-{order}"
            flags = {
                "prune_iterations": 1,
                "end_iter": 1,
                "output_dir": folder,
                "order_seed": order,
            }
            args = small_args(seed=seed, **flags)
            main.main(args)
            losses[seed, order] = log_rows(args)[-1]["train_loss"]
            assert "lt_barrier.dat" not in arrays(args)
            assert "barrier" not in log_rows(args)[-1]
    assert len(set(losses.values())) == 8


@pytest.mark.parametrize(
    ("flags", "expected"), [([], 0), (["--connect_to=a"], 1), (["--connect_to=none"], 0)]
)
def test_the_default_order(flags, expected):
    assert main.parse_args(flags).order_seed == expected
    assert main.parse_args([*flags, "--order_seed=7"]).order_seed == 7


def test_the_barrier_between_two_other_orders(pair, tmp_path):
    """A connected run can be connected to."""
    first, second = pair(SGD)
    third = pair(
        SGD,
        order_seed=2,
        connect_to=utils.Files(second).saves,
        output_dir=tmp_path / "third",
    )[1]
    for args in (first, second, third):
        main.main(args)
    errors = {
        args.order_seed: [row["line_errors"] for row in last_rows(args)] for args in (second, third)
    }
    for one, other in zip(errors[1], errors[2], strict=True):
        assert one[-1] == other[0]
    assert masks_of(third) == masks_of(first)


def masks_of(args):
    """Return the checksums of a run's masks, by round."""
    return [row["masks"] for row in last_rows(args)]


# The barrier


def line_by_hand(first, second, round_, statistics):
    """Return the test errors on the line between two networks, computed in the plainest way.

    `statistics(model)` returns a dict of what batch norm should have there.
    """
    data = trial_data(first)
    images, labels = data.test
    ends = [ticket(args, round_)["final"] for args in (first, second)]
    errors = []
    for a in np.linspace(0, 1, 30):
        model = archs.build("digits", "fc1")
        model.load_state_dict(
            {name: (1 - a) * ends[0][name] + a * ends[1][name] for name in ends[0]}
        )
        model.load_state_dict(statistics(model), strict=False)
        model.eval()
        with torch.no_grad():
            wrong = model(data.normalize(images)).argmax(1) != labels
        errors.append(100 * wrong.double().mean().item())
    return errors


def batch_norm_by_hand(args, data, model, chosen, batches):
    """Return the statistics of the batch norm of `noisy_network`, averaged over batches."""
    before = model[0](data.normalize(data.train[0][chosen]))
    parts = before.detach().split(batches)
    return {
        "2.running_mean": torch.stack([x.mean((0, 2, 3)) for x in parts]).mean(0),
        "2.running_var": torch.stack(
            [x.transpose(0, 1).flatten(1).var(1, correction=1) for x in parts]
        ).mean(0),
    }


def noisy_network(*_):
    """Return a network with dropout before batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 10),
    )


def test_the_barrier_is_the_maximum_minus_the_mean_of_both_ends(pair):
    first, second = pair(SGD | {"rewind_iter": 2})
    main.main(first)
    main.main(second)
    rows = last_rows(second)
    for round_, row in enumerate(rows):
        errors = row["line_errors"]
        # Rounding may decide a tie differently.
        expected = line_by_hand(first, second, round_, lambda _: {})
        assert errors == pytest.approx(expected, abs=0.3)
        assert errors[0] == 100 - last_rows(first)[round_]["test_accuracy"]
        assert errors[-1] == 100 - row["test_accuracy"]
        assert row["barrier"] == max(errors) - (errors[0] + errors[-1]) / 2
    assert barriers(second).tolist() == [row["barrier"] for row in rows]
    assert all("barrier" not in row for row in log_rows(second) if row not in rows)
    assert len({row["barrier"] for row in rows}) > 1


def test_the_barrier_has_statistics_of_the_networks_on_the_line(pair, monkeypatch):
    """At the ends, too. Averages of two networks' statistics would spoil the networks between."""
    monkeypatch.setattr(archs, "build", noisy_network)
    first, second = pair(SGD | {"augment": True})
    main.main(first)
    main.main(second)
    data = trial_data(first)
    order = chosen_examples(first, data)

    def statistics(model):
        return batch_norm_by_hand(first, data, model, order, [500, 500, 237])

    for round_, row in enumerate(last_rows(second)):
        expected = line_by_hand(first, second, round_, statistics)
        assert row["line_errors"] == pytest.approx(expected, abs=0.3)


def chosen_examples(args, data, count=5000):
    """Return which training examples the seed chooses for batch norm's statistics."""
    main.seed_torch(args.seed, 0, 0, 1)
    return torch.randperm(len(data.train[1]))[:count]


@pytest.mark.parametrize(
    ("count", "batches"), [(5000, [500, 250]), (700, [500, 200]), (501, [500])]
)
def test_statistics_are_those_of_examples_that_the_seed_chooses(
    count, batches, small_args, monkeypatch
):
    """A last batch of one image is left out. There is neither dropout nor augmentation."""
    monkeypatch.setattr(main, "STATISTICS", count)
    data = small_data(1000)
    found = {}
    for seed in (0, 1):
        args = small_args(seed=seed, augment=True)
        model = noisy_network()
        with torch.no_grad():
            model[2].running_mean.fill_(7)
            model[2].num_batches_tracked.fill_(9)
            expected = batch_norm_by_hand(
                args, data, model, chosen_examples(args, data, sum(batches)), batches
            )
            main.recompute_statistics(args, model, data)
        found[seed] = {name: model.state_dict()[name] for name in expected}
        torch.testing.assert_close(found[seed], expected)
    # All examples in another order differ by rounding and by the last batch's weight only.
    assert not same(found[0], found[1])


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784, track_running_stats=False)),
    ],
)
def test_networks_without_statistics_stay_as_they_are(network, small_args):
    before = utils.snapshot(network)
    main.recompute_statistics(small_args(), network, small_data(10))
    assert same(utils.snapshot(network), before)


class Unusual(nn.Module):
    """A network with frozen batch norm, and with infinite and undefined elements in buffers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))
        self.layers[2].running_var.fill_(0.01)
        self.register_buffer("mask", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
        self.register_buffer("unused", torch.tensor(torch.nan))

    def train(self, mode=True):
        super().train(mode)
        self.layers[2].eval()
        return self

    def forward(self, x):
        share, _ = self.mask.softmax(1)[0]
        return self.layers(x) * share


def test_what_two_networks_share_is_left_as_it_is(pair, monkeypatch):
    """Infinite elements of a buffer, and the statistics of batch norm that is frozen."""
    monkeypatch.setattr(archs, "build", lambda *_: Unusual())
    first, second = pair({"prune_iterations": 1})
    main.main(first)
    main.main(second)
    (row,) = last_rows(second)
    assert row["line_errors"][-1] == pytest.approx(100 - row["test_accuracy"])
    assert row["line_errors"][-1] < 60
    assert len(set(row["line_errors"])) > 1


def test_a_barrier_without_a_finite_loss_is_one_line(pair, monkeypatch):
    first, second = pair({"prune_iterations": 1})
    main.main(first)
    monkeypatch.setattr(
        main, "recompute_statistics", lambda _, model, __: model[5].bias.fill_(torch.nan)
    )
    monkeypatch.setattr(main, "check_training", lambda *_: None)
    with pytest.raises(utils.Failure, match="the barrier of round 0 of seed 0 cannot be measured"):
        main.main(second)
    assert finished_rounds(second) == 0


def test_statistics_are_rehearsed_before_training(pair, monkeypatch):
    """Batch norm may not accept the sizes of its batches."""

    class Ghost(nn.BatchNorm1d):
        def forward(self, x):
            return torch.cat([super(Ghost, self).forward(part) for part in x.split(4)])

    def build(*_):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), Ghost(10))

    monkeypatch.setattr(archs, "build", build)
    first, second = pair()
    main.main(first)
    with pytest.raises(
        utils.BadInput, match="the network cannot be trained and restored: ValueError: Exp"
    ):
        main.main(second)
    assert not utils.Files(second).checkpoint.exists()


def test_the_barrier_is_printed_and_in_tensorboard(pair, capsys):
    first, second = pair(SGD)
    main.main(first)
    assert "error barrier" not in capsys.readouterr().out
    main.main(second)
    output = capsys.readouterr().out
    folder = first.output_dir + "/saves/fc1/digits"
    assert (
        f"\nconnected to the run in {folder}: its masks, its weights at iteration 0, and from "
        "there on --order_seed=1\n"
    ) in output
    assert "the same order" not in output
    for round_, barrier in enumerate(barriers(second)):
        assert f"% at the end; error barrier {barrier:.2f} points\n" in output
        assert f"round {round_}: " in output
    for args, expected in ((first, None), (second, barriers(second))):
        events = EventAccumulator(str(utils.Files(args).runs)).Reload()
        if expected is None:
            assert "ticket/error_barrier" not in events.Tags()["scalars"]
        else:
            shown = [event.value for event in events.Scalars("ticket/error_barrier")]
            assert shown == pytest.approx(expected.tolist())


def test_barriers_of_a_lost_round_are_deleted(pair, stop_after):
    """As if the newest checkpoint is damaged and the one before it is of the first round."""
    first, second = pair()
    main.main(first)
    stop_after(3, second)
    files = utils.Files(second)
    utils.write_array(files.array("barrier"), [9.0])
    stop_after(3, second)
    assert not files.array("barrier").exists()
    main.main(second)
    assert len(barriers(second)) == finished_rounds(second) == 2


# Runs that cannot be connected


@pytest.mark.parametrize(
    ("flags", "problem", "remedy"),
    [
        ({"connect_to": "nowhere"}, r"nowhere/0_model_lt\.pth\.tar is missing", ""),
        (
            {"prune_iterations": 2},
            r"/1_model_lt\.pth\.tar is missing",
            "Give --prune_iterations=1, or let that run finish 2 rounds, or give",
        ),
        ({"prune_type": "random"}, r"/0_model_random\.pth\.tar is missing", ""),
        ({"seed": 1}, r"seed1/0_model_lt\.pth\.tar is missing", ""),
        ({"lr": 0.1}, "with --lr=0.0012, not 0.1", "Give --lr=0.0012, or"),
        ({"rewind_iter": 0}, f"with --rewind_iter={K}, not 0", f"Give --rewind_iter={K}, or"),
        ({"augment": True}, "with --augment=False, not True", "Leave out --augment, or"),
        ({"prune_percent": 30}, "with --prune_percent=20, not 30", "Give"),
        ({"arch_type": "lenet5"}, "with --arch_type=fc1, not lenet5", "Give"),
        ({"val_size": 100}, "with --val_size=200, not 100", "Give"),
    ],
)
def test_a_run_that_cannot_be_connected_to_is_refused_before_training(
    flags, problem, remedy, pair, check_refused
):
    first, second = pair({"rewind_iter": K, "prune_iterations": 1}, **flags)
    main.main(first)
    check_refused(second, "connect_to", problem, remedy, "a run by")


def test_the_run_itself_is_refused(pair):
    first, second = pair()
    main.main(first)
    before = arrays(first)
    second.output_dir, second.overwrite = first.output_dir, True
    with pytest.raises(utils.BadInput, match=r"tickets of this very run\. Choose another --out"):
        main.main(second)
    assert arrays(first) == before


def test_a_run_with_other_masks_is_refused(pair, tmp_path):
    """A control with its own masks, and one with the masks of another run."""
    flags = {"prune_type": "reinit", "masks_from": "lt"}
    main.main(pair()[0])
    main.main(pair({"prune_type": "reinit"})[0])
    with pytest.raises(utils.BadInput, match=r"--masks_from=none, not lt\. Give --masks_from=none"):
        main.main(pair(flags)[1])
    first, second = pair(flags)
    first.overwrite = True
    main.main(first)
    main.main(second)
    own = {"prune_type": "reinit"}
    with pytest.raises(utils.BadInput, match=r"with --masks_from=lt, not none"):
        main.main(pair(own, output_dir=tmp_path / "own")[1])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: content["masks"].pop("5.weight"), "is of another network"),
        (lambda content: content["final"].pop("5.weight"), "is of another network"),
        (lambda content: content["final"].update({"5.bias": torch.ones(9)}), "of another network"),
        (lambda content: content.update(final=3), "is damaged"),
        (lambda content: content.update(round=0), "is the ticket of round 0"),
        (lambda content: content["args"].update(order_seed=9), "is of another run than that of"),
    ],
)
def test_a_ticket_that_does_not_fit_is_refused(change, problem, pair):
    first, second = pair()
    main.main(first)
    path = utils.Files(first).ticket(1)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(utils.BadInput, match=problem):
        main.main(second)


def test_a_run_on_other_data_is_refused(pair, monkeypatch):
    first, second = pair()
    main.main(first)
    load = archs.load

    def inverted(*args, **options):
        images, labels = load(*args, **options)
        return 255 - images, labels

    monkeypatch.setattr(archs, "load", inverted)
    second.overwrite = True
    with pytest.raises(utils.BadInput, match=r"0_model_lt\.pth\.tar was made with other data"):
        main.main(second)


def change_final(first):
    path = utils.Files(first).ticket(1)
    content = torch.load(path, weights_only=True)
    content["final"]["5.bias"][0] += 1e-3
    torch.save(content, path)


@pytest.mark.parametrize("stop", [None, 25])
@pytest.mark.parametrize("change", [change_initial, change_final])
def test_a_replaced_run_is_refused_on_resuming(change, stop, pair, stop_after):
    first, second = pair()
    main.main(first)
    if stop:
        stop_after(stop, second)
    else:
        main.main(second)
    before = arrays(second)
    change(first)
    folder = utils.Files(first).saves
    with pytest.raises(utils.BadInput, match=rf"other tickets than there are now in {folder}\."):
        main.main(second)
    assert arrays(second) == before


def test_a_run_that_is_replaced_during_the_round_is_refused(pair, monkeypatch):
    """Before the barrier is measured."""
    first, second = pair()
    main.main(first)
    measure_barrier = main.measure_barrier

    def replace(run, state, data):
        if state.round == 1:
            change_final(first)
        return measure_barrier(run, state, data)

    monkeypatch.setattr(main, "measure_barrier", replace)
    with pytest.raises(utils.Failure, match=r"the tickets in .* have changed since this run"):
        main.main(second)
    assert finished_rounds(second) == 1


@pytest.mark.parametrize("k", [0, K])
def test_the_weights_at_k_must_be_shared(k, pair, capsys):
    first, second = pair({"rewind_iter": k})
    main.main(first)
    change_initial(first)
    message = (
        rf"at iteration {k}, the network of seed 0 is not that in {utils.Files(first).initial}\. "
        "Use the same code"
    )
    with pytest.raises(utils.Failure, match=message):
        main.main(second)
    assert finished_rounds(second) == 0
    assert ("% of the weights remain" in capsys.readouterr().out.partition("connected")[2]) == (
        k > 0
    )


def test_results_are_deleted_only_after_the_weights_at_iteration_0_are_compared(pair):
    first, second = pair()
    main.main(first)
    main.main(second)
    before = arrays(second)
    change_initial(first)
    second.overwrite = True
    with pytest.raises(utils.Failure, match="at iteration 0"):
        main.main(second)
    assert arrays(second) == before


@pytest.mark.parametrize("kind", ["lr_rewind", "finetune"])
def test_prune_types_that_keep_trained_weights_are_refused(kind, capsys):
    with pytest.raises(SystemExit):
        main.parse_args([f"--prune_type={kind}", "--warmup_iter=5", "--connect_to=a"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--connect_to is not for --prune_type={kind}: its rounds start from trained" in error


def keep_biases(args, state):
    """Reset all but the biases of the output layer."""
    bias = state.model[5].bias.clone()
    main.lt(args, state)
    state.model[5].bias.copy_(bias)


def negative(args, state):
    main.lt(args, state)
    for weight in main.prunable(state.model).values():
        weight.neg_()


def best(args, state):
    state.model.load_state_dict(state.best)


def averages(args, state):
    main.lt(args, state)
    for name, weight in main.prunable(state.model).items():
        weight.add_(state.optimizer_state["average"][name])


def unseeded(args, state):
    main.lt(args, state)
    state.model[5].bias.fill_(next(NUMBERS))


NUMBERS = itertools.count()
FUNCTIONS = [
    (keep_biases, False),
    (best, False),
    (averages, False),
    (unseeded, False),
    (negative, True),
]


@pytest.mark.parametrize(("function", "usable"), FUNCTIONS)
def test_prune_types_of_users_are_checked(function, usable, pair, monkeypatch):
    kinds = main.PRUNE_TYPES | {"own": main.PruneType("own", function)}
    monkeypatch.setattr(main, "PRUNE_TYPES", kinds)
    first, second = pair({"prune_type": "own"}, order_seed=0)
    main.main(first)
    if usable:
        check_null(first, second)
        return
    with pytest.raises(utils.BadInput, match=r"for --prune_type=own: its function gives other"):
        main.main(second)
    assert not utils.Files(second).checkpoint.exists()


# Records, resuming, and what comes next


@pytest.mark.parametrize("kind", ["lt", "reinit"])
def test_a_connected_run_resumes_at_every_iteration(kind, pair, stop_after, tmp_path, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    monkeypatch.setattr(main, "POINTS", 3)
    k = 0 if kind == "reinit" else 2
    flags = {"max_iter": 5, "batch_size": 300, "prune_type": kind, "rewind_iter": k}
    first, expected = pair(flags, output_dir=tmp_path / "undisturbed")
    main.main(first)
    main.main(expected)
    for stop in range(1, 10 - k + 1):
        args = pair(flags, output_dir=tmp_path / str(stop))[1]
        stop_after(stop, args)
        main.main(args)
        assert arrays(args) == arrays(expected), stop
        assert same(ticket(args, 1)["final"], ticket(expected, 1)["final"])
        assert [row["line_errors"] for row in last_rows(args)] == [
            row["line_errors"] for row in last_rows(expected)
        ]


def test_more_rounds_and_more_trials(pair, tmp_path):
    trials = {"trials": 2, "seed": 1}
    main.main(pair(trials)[0])
    for rounds in (1, 2):
        main.main(pair(trials | {"prune_iterations": rounds})[1])
    at_once = pair({"seed": 2}, output_dir=tmp_path / "at once")[1]
    main.main(at_once)
    assert arrays(at_once) == arrays(pair({"seed": 2})[1])
    assert len(barriers(at_once)) == len(barriers(pair({"seed": 1})[1])) == 2


def test_a_run_records_whose_masks_it_has(pair):
    """Those of the run that it is connected to, and of the one that this one had them from."""
    flags = {"prune_type": "reinit", "masks_from": "lt"}
    main.main(pair()[0])
    first, second = pair(flags)
    main.main(first)
    main.main(second)
    records = [
        json.loads(utils.Files(args).settings.read_text())["settings"] for args in (first, second)
    ]
    assert records[1]["masks_from_settings"] == records[0]["masks_from_settings"] != {}
    differing = {name for name in records[0] if records[1][name] != records[0][name]}
    assert differing == {"connect_to", "order_seed", "output_dir", "masks_from_checksums"}
    assert records[1].keys() - records[0].keys() == {"first_order_seed"}


@pytest.mark.parametrize("flags", [[], ["--rewind_iter=5"], ["--prune_type=reinit"]])
def test_the_figure_comes_next(flags):
    flags = ["--connect_to=a", "--output_dir=b", *flags]
    *_, following = main.closing(main.parse_args(flags), flags).splitlines()
    assert shlex.split(following) == ["next:", "python3", "combine_plots.py", "--output_dir=b"]


# Curves


def curves_of(*folders):
    found = [files for folder in folders for files in utils.find_results(folder)]
    runs, _ = combine_plots.read_runs(found)
    return set(runs["curve"])


def test_curves_of_connected_runs(pair, tmp_path, capsys):
    """Named by the settings of both ends, unless runs of different orders are drawn together."""
    folders = {}
    for k in (0, K):
        folders[k] = tmp_path / f"k{k}", tmp_path / f"k{k}copy"
        for flags in ({"rewind_iter": k}, {"prune_type": "reinit", "masks_from": "lt"}):
            flags |= {"prune_iterations": 2, "output_dir": folders[k][0]}
            if k and "masks_from" in flags:
                continue
            first, _ = pair(flags)
            main.main(first)
            place = folders[k][0] / "saves/fc1/digits"
            main.main(pair(flags | {"output_dir": folders[k][1], "connect_to": place})[1])
    assert curves_of(folders[0][1]) == {"lt", "reinit, lt's masks"}
    assert curves_of(folders[0][1], folders[K][1]) == {
        "lt, rewind_iter=0",
        f"lt, rewind_iter={K}",
        "reinit, lt's masks, lt's rewind_iter=0",
    }
    assert curves_of(*folders[0]) == {
        "lt, order_seed=0",
        "lt, order_seed=1, connect_to",
        "reinit, lt's masks, order_seed=0",
        "reinit, lt's masks, order_seed=1, connect_to",
    }
    capsys.readouterr()
    same_order = {"prune_iterations": 2, "output_dir": tmp_path / "null", "order_seed": 0}
    main.main(pair(same_order | {"connect_to": folders[0][0] / "saves/fc1/digits"})[1])
    assert curves_of(folders[0][0], tmp_path / "null") == {
        "lt",
        "lt, connect_to",
        "reinit, lt's masks",
    }
    assert "left out" not in capsys.readouterr().err


def test_curves_tell_the_orders_of_both_runs(pair, tmp_path):
    flags = {"prune_iterations": 1}
    first, second = pair(flags)
    other = pair(flags, order_seed=2, output_dir=tmp_path / "other")[1]
    for args in (first, second, other):
        main.main(args)
    third = pair(flags, connect_to=utils.Files(other).saves, output_dir=tmp_path / "third")[1]
    main.main(third)
    assert curves_of(second.output_dir, third.output_dir) == {
        "lt, first_order_seed=0",
        "lt, first_order_seed=2",
    }
    assert curves_of(second.output_dir, other.output_dir) == {
        "lt, order_seed=1",
        "lt, order_seed=2",
    }


def test_a_connected_run_is_not_a_run_with_its_own_masks_in_that_order(pair, tmp_path):
    flags = {"prune_iterations": 2}
    first, second = pair(flags)
    main.main(first)
    main.main(second)
    own = pair(flags | {"output_dir": tmp_path / "own", "order_seed": 1})[0]
    main.main(own)
    assert curves_of(tmp_path / "own", Path(second.output_dir)) == {"lt", "lt, connect_to"}
