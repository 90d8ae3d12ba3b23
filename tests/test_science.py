"""The method's invariants: initialization, training, pruning, resets, data, evaluation."""

import dataclasses
import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import archs
import main
import utils
from conftest import (
    arrays,
    check_training,
    log_rows,
    same,
    small_data,
    small_network,
    ticket,
    trial_data,
)

BATCH_NORM = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}

pytestmark = pytest.mark.usefixtures("undrawn")


def half(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(weight.shape, generator=generator) < 0.5
        for name, weight in main.prunable(model).items()
    }


# 1. Prunable weights


@pytest.mark.parametrize("arch_type", archs.architectures("mnist"))
def test_only_weights_of_convolutions_and_linear_layers_are_prunable(arch_type):
    model = archs.build("mnist", arch_type)
    modules = dict(model.named_modules())
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {name for name, module in modules.items() if isinstance(module, kinds)}
    assert set(main.prunable(model)) == {f"{name}.weight" for name in layers}
    assert all(weight.dim() > 1 for weight in main.prunable(model).values()), (
        "batch norm has 1-D weights"
    )


def test_a_layer_that_is_the_whole_model_is_prunable():
    assert list(main.prunable(nn.Linear(2, 3))) == ["weight"]


# 2. Initialization


@pytest.mark.parametrize(
    "arch_type",
    [name for name in archs.architectures("digits") if not archs.initializer("digits", name)],
)
def test_initialization_is_gaussian_glorot_with_zero_biases(arch_type, small_args):
    model = main.new_model(small_args(arch_type=arch_type), 0)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
            standard = module.weight.detach().flatten() * math.sqrt((fan_in + fan_out) / 2)
            tolerance = 6 / math.sqrt(len(standard))
            assert abs(standard.std() - 1) < tolerance
            assert abs(standard.mean()) < tolerance
            # A Gaussian keeps 68.3% within one standard deviation, a uniform distribution 57.7%.
            assert abs((standard.abs() < 1).double().mean() - 0.683) < tolerance
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


INITIALIZE = """
from torch import nn


def build(channels, size, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, 20), nn.ReLU(), nn.Linear(20, 10))


def initialize(model):
    for layer in (model[1], model[3]):
        nn.init.uniform_(layer.weight, 1, 2)
        nn.init.constant_(layer.bias, 3)
"""


def test_an_architecture_may_draw_its_own_weights(own, small_args, starts, undrawn):
    (own / "common/mine.py").write_text(INITIALIZE)
    for kind in ("lt", "reinit"):
        main.main(small_args(arch_type="mine", prune_type=kind, end_iter=1))
    for state, masks in starts:
        for name, mask in masks.items():
            assert ((state[name] >= 1) == mask).all()
            assert (state[name] < 2).all()
            assert (state[name.replace("weight", "bias")] == 3).all()
    (first, _), (second, kept) = starts[3:5]
    same = (first["1.weight"] == second["1.weight"])[kept["1.weight"]]
    assert same.double().mean() < 0.01, "reinit did not draw new weights"


# 3. The optimizer


ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD


@pytest.mark.parametrize(
    ("flags", "kind", "settings", "iterations", "rate"),
    [
        ({"lr": 3.21e-4}, ADAM, {}, 40, lambda i: 3.21e-4),
        ({"weight_decay": 0.01}, ADAM, {"weight_decay": 0.01}, 40, lambda i: 1.2e-3),
        ({"optimizer": "sgd", "lr": 0.02}, SGD, {"momentum": 0.9}, 40, lambda i: 0.02),
        (
            {"optimizer": "sgd", "lr": 0.02, "momentum": 0, "weight_decay": 1e-2, "max_iter": 27},
            SGD,
            {"weight_decay": 1e-2},
            27,
            lambda i: 0.02,
        ),
        (
            {
                "optimizer": "sgd",
                "lr": 0.03,
                "warmup_iter": 10,
                "lr_milestones": "15,25",
                "lr_gamma": 0.2,
            },
            SGD,
            {"momentum": 0.9},
            40,
            lambda i: 0.03 * (min(1, (i + 1) / 10) if i < 15 else 0.2 if i < 25 else 0.04),
        ),
        ({"lr_milestones": "5"}, ADAM, {}, 40, lambda i: 1.2e-3 if i < 5 else 1.2e-4),
        (
            {"optimizer": "adamw", "weight_decay": 0.5},
            ADAMW,
            {"weight_decay": 0.5},
            40,
            lambda i: 1.2e-3,
        ),
        (
            {"optimizer": "sgd", "lr": 0.02, "nesterov": True, "momentum": 0.8},
            SGD,
            {"momentum": 0.8, "nesterov": True},
            40,
            lambda i: 0.02,
        ),
        (
            {"lr_schedule": "cosine", "label_smoothing": 0.2},
            ADAM,
            {},
            40,
            lambda i: 1.2e-3 * (1 + math.cos(math.pi * i / 40)) / 2,
        ),
    ],
)
def test_every_round_trains_with_a_fresh_optimizer_and_the_given_schedule(
    flags, kind, settings, iterations, rate, small_args, starts, monkeypatch
):
    """The weights have the same bits as with torch.optim's classes."""
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(**flags)
    main.main(args)
    optimizer = partial(kind, lr=args.lr, fused=True, **settings)
    check_training(args, starts, optimizer, range(iterations), lambda _, i: rate(i))


# 4. Pruned weights stay zero, survivors learn


@pytest.mark.parametrize("weight_decay", [0, 0.1])
def test_pruned_weights_are_zero_in_every_forward_pass(weight_decay, small_args, train_round):
    args = small_args(weight_decay=weight_decay)
    model = main.new_model(args, 0)
    masks, data, passes = half(model), small_data(480), []

    def check(*_):
        passes.append(None)
        for name, weight in main.prunable(model).items():
            assert not weight[~masks[name]].any()

    main.apply_masks(model, masks)
    model.register_forward_pre_hook(check)
    train_round(args, model, data, masks)
    assert len(passes) > 10
    check()


def test_surviving_weights_of_both_signs_learn(small_args, train_round):
    args = small_args()
    model = main.new_model(args, 0)
    masks = half(model)
    main.apply_masks(model, masks)
    before = utils.snapshot(model)
    train_round(args, model, small_data(480), masks)
    for name, weight in main.prunable(model).items():
        for sign in (-1, 1):
            alive = masks[name] & (before[name].sign() == sign)
            moved = (weight != before[name])[alive].double().mean()
            assert moved > 0.5, (name, sign)  # weights of units that are never active do not move


# 6. Reset


def test_lt_resets_everything_to_its_original_value(small_args, starts, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args()
    main.main(args)
    original = main.new_model(args, 0).state_dict()
    assert len(starts) == 3
    for state, masks in starts:
        assert state.keys() == original.keys()
        for name, tensor in state.items():
            expected = original[name] * masks[name] if name in masks else original[name]
            assert torch.equal(tensor, expected), name
            suffix = name.rpartition(".")[2]
            assert suffix not in BATCH_NORM or (tensor == BATCH_NORM[suffix]).all()
    saved = torch.load(
        f"{args.output_dir}/saves/fc1/digits/initial_state_dict_lt.pth.tar", weights_only=True
    )
    assert all(torch.equal(saved[name], original[name]) for name in original)


def test_reinit_resets_to_new_values_in_every_round(small_args, starts, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    main.main(small_args(prune_type="reinit"))
    for (state, _), (other, masks) in [
        (starts[0], starts[1]),
        (starts[1], starts[2]),
        (starts[0], starts[2]),
    ]:
        for name, mask in masks.items():
            assert (state[name] != other[name])[mask].all(), name
            assert not other[name][~mask].any()
    for state, _ in starts:
        for name, tensor in state.items():
            suffix = name.rpartition(".")[2]
            assert suffix not in BATCH_NORM or (tensor == BATCH_NORM[suffix]).all(), name


def test_masks_are_nested_and_follow_from_final_weights(small_args, starts, monkeypatch):
    """Best validation, which here is after the first epoch of two, plays no role."""
    # Of validation and test examples three times, and of training examples.
    scores = itertools.cycle([0.0, 0.0, 90.0, 90.0, 80.0, 80.0, 50.0])
    monkeypatch.setattr(main, "evaluate", lambda *_: (1.0, next(scores)))
    args = small_args()
    main.main(args)
    for round_ in (1, 2):
        before, after = starts[round_ - 1][1], starts[round_][1]
        final = ticket(args, round_ - 1)["final"]
        for name in before:
            assert not (after[name] & ~before[name]).any()
            removed = before[name] & ~after[name]
            assert removed.sum() == round(0.2 * int(before[name].sum()))
            assert final[name][removed].abs().max() <= final[name][after[name]].abs().min()


# 7. Evaluation


class Recorder(nn.Module):
    """A classifier of two-pixel images that records its inputs and its mode."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.seen = nn.Linear(2, 2), nn.Dropout(0.5), []

    def forward(self, x):
        self.seen.append((self.training, x.detach().clone()))
        return self.dropout(self.linear(x.flatten(1)))


def test_every_example_is_evaluated_in_eval_mode(small_args, monkeypatch):
    monkeypatch.setitem(main.EVAL_BATCH, "cpu", 100)
    model = Recorder().train()
    images = torch.randint(256, (257, 1, 1, 2), dtype=torch.uint8)
    labels = torch.randint(2, (257,))
    data = dataclasses.replace(small_data(4), std=torch.tensor(1.0))
    loss, accuracy = main.evaluate(small_args(), model, data, (images, labels))
    assert not any(training for training, _ in model.seen)
    assert torch.equal(torch.cat([x for _, x in model.seen]), images.float())
    logits = model.linear(images.float().flatten(1))
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())


@pytest.mark.parametrize("valid_freq", [1, 2, 5])
def test_rows_and_checkpoints_measure_the_weights_they_name(valid_freq, small_args):
    args = small_args(prune_iterations=2, end_iter=4, valid_freq=valid_freq)
    main.main(args)
    data = trial_data(args)
    dumps = f"{args.output_dir}/dumps/lt/fc1/digits"
    log = utils.trained(log_rows(args))
    epochs = [epoch for epoch in range(1, 5) if epoch % valid_freq == 0 or epoch == 4]
    assert [(row["round"], row["epoch"]) for row in log] == [
        (r, epoch) for r in range(2) for epoch in epochs
    ]

    model = archs.build("digits", "fc1")
    for round_ in range(2):
        rows = [row for row in log if row["round"] == round_]
        saved = ticket(args, round_)
        highest = max(row["val_accuracy"] for row in rows)
        equal = [row for row in rows if row["val_accuracy"] == highest]
        best = min(equal, key=lambda row: row["val_loss"])
        early = min(rows, key=lambda row: row["val_loss"])
        for row, state in ((rows[-1], saved["final"]), (best, saved["model"])):
            model.load_state_dict(state)
            val_loss, val_accuracy = main.evaluate(args, model, data, data.val)
            assert (val_loss, val_accuracy) == (row["val_loss"], row["val_accuracy"])
            assert main.evaluate(args, model, data, data.test)[1] == row["test_accuracy"]
            assert row["iteration"] == row["epoch"] * (1237 // 60)
        expected = {
            "compression": saved["weights_remaining"],
            "bestaccuracy": best["test_accuracy"],
            "finalaccuracy": rows[-1]["test_accuracy"],
            "earlystop": early["iteration"],
            "earlystopaccuracy": early["test_accuracy"],
        }
        for name, value in expected.items():
            assert np.load(f"{dumps}/lt_{name}.dat")[round_] == value, name
        assert saved["test_accuracy"] == best["test_accuracy"]
        accuracies = np.load(f"{dumps}/lt_all_accuracy_{round_}.dat")
        assert len(accuracies) == len(np.load(f"{dumps}/lt_all_loss_{round_}.dat")) == 4
        assert {
            epoch + 1: value for epoch, value in enumerate(accuracies) if not np.isnan(value)
        } == {row["epoch"]: row["test_accuracy"] for row in rows}


def test_the_best_evaluation_is_selected_on_validation_examples(
    small_args, train_round, monkeypatch
):
    """Validation accuracy falls and test accuracy rises, so the first epoch is best."""
    args = small_args(end_iter=3)
    model = main.new_model(args, 0)
    data = small_data(480)
    data.val, data.test = ["val"], ["test"]
    scores, states = {"val": [0, 90, 80, 70], "test": [0, 10, 20, 30]}, []

    def fake(args, model, data, examples):
        if examples is data.train:
            return 1.0, 50.0
        states.append(utils.snapshot(model))
        return 1.0, scores[examples[0]].pop(0)

    monkeypatch.setattr(main, "evaluate", fake)
    best = train_round(args, model, data).best
    _, _, after_an_epoch, *_ = states
    assert all(torch.equal(best[name], after_an_epoch[name]) for name in best)


def test_of_equal_validation_accuracies_the_lowest_loss_and_then_the_first_is_best(
    small_args, train_round, monkeypatch
):
    args = small_args(end_iter=5)
    data = small_data(480)
    data.val, data.test = ["val"], ["test"]
    measured = [(9.0, 0), (3.0, 90), (2.0, 90), (1.0, 80), (2.0, 90), (2.5, 90)]
    states = []

    def fake(args, model, data, examples):
        if examples is not data.val:
            return 1.0, 50.0
        states.append(utils.snapshot(model))
        return measured[len(states) - 1]

    monkeypatch.setattr(main, "evaluate", fake)
    state = train_round(args, main.new_model(args, 0), data)
    assert utils.best(state.rows[0]) is state.rows[0][2]
    assert same(utils.snapshot(state.best), states[2])
    assert not same(states[2], states[4])


def test_validation_examples_are_held_out(small_args):
    args = small_args()
    data = trial_data(args)
    images, labels = archs.load("digits", args.data_dir, train=True)
    assert (len(data.train[1]), len(data.val[1]), len(data.test[1])) == (1237, 200, 360)
    parts = (
        torch.cat([data.train[0], data.val[0]]).flatten(1),
        torch.cat([data.train[1], data.val[1]]),
    )
    assert sorted(map(tuple, torch.column_stack([*parts]).tolist())) == sorted(
        map(tuple, torch.column_stack([images.flatten(1), labels]).tolist())
    )
    assert torch.equal(data.test[0], archs.load("digits", args.data_dir, train=False)[0])


def test_trials_hold_out_different_examples(small_args):
    args = small_args()
    data = main.load_data(args, torch.device("cpu"))
    held_out = []
    for seed in (0, 1, 0):
        args.seed = seed
        images, _ = main.hold_out(args, data).val
        held_out.append({image.numpy().tobytes() for image in images})
    assert held_out[0] == held_out[2]
    assert len(held_out[0] & held_out[1]) < 60  # about 200 * 200 / 1437 by chance
    assert len(data.train[1]) == 1437, "the dataset was changed"


@pytest.mark.parametrize("flags", [{}, {"seed": 7, "val_size": 300}, {"seed": 2, "val_size": 0}])
def test_load_split_returns_the_examples_of_a_run(flags, small_args):
    args = small_args(**flags)
    data = trial_data(args)
    torch.manual_seed(0)
    train, val, test = archs.load_split("digits", args.data_dir, **flags)
    assert torch.initial_seed() == 0, "it seeds torch's own generator"
    assert same([*train, *val, *test], [*data.train, *data.val, *data.test])
    assert (val is test) == (args.val_size == 0)


@pytest.mark.parametrize("val_size", [-1, 1437])
def test_load_split_refuses_impossible_sizes(val_size):
    with pytest.raises(ValueError, match=rf"in \[0, 1437\), not {val_size}"):
        archs.load_split("digits", "data", val_size=val_size)


def test_without_validation_examples_the_test_set_selects(small_args, capsys):
    args = small_args(val_size=0, prune_iterations=1, end_iter=1)
    data = trial_data(args)
    assert data.val is data.test
    assert len(data.train[1]) == 1437
    main.main(args)
    assert "selected on the test set" in capsys.readouterr().out


# 8. Normalization


def test_images_are_normalized_by_the_datasets_statistics(small_args):
    data = trial_data(small_args(val_size=0))
    x = data.normalize(data.train[0])
    assert abs(x.mean()) < 1e-3
    assert abs(x.std() - 1) < 1e-3


def test_channels_are_normalized_separately(small_args, monkeypatch):
    facts = archs.facts("cifar10")
    images = torch.randint(256, (70, 3, 32, 32), dtype=torch.uint8)
    monkeypatch.setattr(
        archs, "load", lambda *_, **__: (images, torch.zeros(70, dtype=torch.int64))
    )
    data = trial_data(small_args(dataset="cifar10", val_size=5))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (facts.MEAN, facts.STD))
    assert torch.allclose(data.normalize(images), (images / 255 - mean) / std, atol=1e-5)


def test_no_two_datasets_share_their_statistics():
    found = [(archs.facts(name).MEAN, archs.facts(name).STD) for name in archs.datasets()]
    assert len(set(found)) == len(found)


# 9 and 10. Randomness and batches


def batches_seen(args, train_round, round_=0, disturb=False):
    """Return the indices of the examples that a round trains on, (epochs, steps, batch)."""
    n = 25
    images = torch.zeros(n, 1, 1, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n)
    data = small_data(4)
    data.train = [images, torch.zeros(n, dtype=torch.int64)]
    data.val = data.test = [images[:1], torch.zeros(1, dtype=torch.int64)]
    data.std = torch.tensor(1.0)
    model = Recorder()
    if disturb:
        torch.rand(17)
    state = main.new_state(args, model)
    state.round = round_
    train_round(args, state, data)
    seen = [x[:, 0, 0, 0].long() for training, x in model.seen if training]
    return torch.stack(seen).view(args.end_iter, -1, args.batch_size)


def test_full_batches_of_a_fresh_permutation_each_epoch(small_args, train_round):
    epochs = batches_seen(small_args(batch_size=10, end_iter=30), train_round)
    assert epochs.shape == (30, 2, 10)
    assert all(len(set(epoch.flatten().tolist())) == 20 for epoch in epochs), (
        "an example came twice in an epoch"
    )
    assert len({tuple(epoch.flatten().tolist()) for epoch in epochs}) == 30
    assert set(epochs.flatten().tolist()) == set(range(25)), (
        "the remainder must rotate with the shuffle"
    )


def test_the_order_depends_on_seed_round_and_epoch_only(small_args, train_round):
    args = {"batch_size": 10, "end_iter": 3}
    lt = batches_seen(small_args(**args), train_round)
    assert torch.equal(
        lt, batches_seen(small_args(**args, prune_type="reinit"), train_round, disturb=True)
    )
    assert torch.equal(lt[:2], batches_seen(small_args(batch_size=10, end_iter=2), train_round))
    assert not torch.equal(lt, batches_seen(small_args(**args), train_round, round_=1))
    assert not torch.equal(lt, batches_seen(small_args(**args, seed=1), train_round))


def test_seeds_are_distinct():
    states = set()
    keys = [(), (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    for seed in (0, 1, 2, 2**32, 2**32 + 1, 2**64 - 1):
        for key in keys:
            main.seed_torch(seed, *key)
            states.add(tuple(torch.rand(4).tolist()))
    assert len(states) == 6 * len(keys)


def test_initial_weights_depend_on_seed_and_round_only(small_args):
    def weights(round_, **changes):
        torch.rand(3)
        return main.new_model(small_args(**changes), round_)[1].weight

    assert torch.equal(weights(0), weights(0, prune_type="reinit"))
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(0), weights(0, seed=1))


def test_the_same_command_gives_the_same_bytes_and_another_seed_does_not(small_args, tmp_path):
    runs = [
        small_args(output_dir=tmp_path / "a"),
        small_args(output_dir=tmp_path / "b"),
        small_args(seed=7),
    ]
    for args in runs:
        main.main(args)
    first, same, other = map(arrays, runs)
    assert first == same
    assert first.keys() == other.keys()
    assert first["lt_all_loss_0.dat"] != other["lt_all_loss_0.dat"]


def test_dropout_follows_from_the_seed(small_args, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    losses = []
    for name in "ab":
        args = small_args(prune_iterations=1, output_dir=f"{small_args().output_dir}/{name}")
        torch.rand(5)
        main.main(args)
        losses.append(arrays(args)["lt_all_loss_0.dat"])
    assert losses[0] == losses[1]


def test_lt_and_reinit_share_only_the_dense_round(small_args):
    lt, reinit = small_args(), small_args(prune_type="reinit")
    main.main(lt)
    main.main(reinit)
    lt, reinit = arrays(lt), arrays(reinit)
    assert lt["lt_all_loss_0.dat"] == reinit["reinit_all_loss_0.dat"]
    assert lt["lt_all_loss_1.dat"] != reinit["reinit_all_loss_1.dat"]
    assert lt["lt_compression.dat"] == reinit["reinit_compression.dat"]


def test_a_training_loss_that_is_not_finite_stops_the_run(small_args):
    with pytest.raises(utils.Failure, match=r"round 0, epoch 1.*--lr"):
        main.main(small_args(lr=1e30))


def test_a_validation_loss_that_is_not_finite_leaves_the_log_intact(small_args, monkeypatch):
    # Of the check before training; of validation and test examples three times, and of training
    # examples; of round 1.
    losses = iter([1.0] + [1.0] * 7 + [1.0, 1.0, math.inf, 1.0])
    monkeypatch.setattr(main, "evaluate", lambda *_: (next(losses), 50.0))
    args = small_args()
    with pytest.raises(utils.Failure, match="round 1, epoch 1"):
        main.main(args)
    assert [row["epoch"] for row in log_rows(args)] == [0, 1, 2, 0]


# The training loop


def test_no_step_waits_for_the_device(small_args, train_round, monkeypatch):
    """Values move from the device to Python as often for many iterations as for few."""
    counts = []

    def counted(original):
        def spy(*args, **kwargs):
            counts[-1] += 1
            return original(*args, **kwargs)

        return spy

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
    for batch_size in (180, 20):
        args = small_args(batch_size=batch_size)
        model = main.new_model(args, 0)
        masks, data = half(model), small_data(480)
        counts.append(0)
        train_round(args, model, data, masks)
    assert counts[0] == counts[1] > 0


def test_connections_are_counted_per_pixel():
    mask = torch.zeros(5, 12, dtype=torch.bool)  # three colours of 2x2 pixels
    mask[:4, 0] = mask[:2, 5] = mask[0, 11] = True
    image = utils.connections(mask)
    assert image.shape == (16, 16)
    assert image[::8, ::8].tolist() == [[1, 0.5], [0, 0.25]]
    assert utils.connections(torch.ones(5, 16, dtype=torch.bool)).shape == (32, 32)
    assert utils.connections(torch.ones(5, 7, dtype=torch.bool)) is None


# Other networks


class Odd(nn.Module):
    """Layers of all kinds, the output first in `__init__`, and parameters that are not prunable."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 10)
        self.conv1, self.conv3 = (
            nn.Conv1d(4, 4, 3, padding=1),
            nn.Conv3d(1, 4, (1, 7, 7), stride=(1, 7, 7)),
        )
        self.up, self.up1, self.up3 = (
            nn.ConvTranspose2d(4, 4, 1),
            nn.ConvTranspose1d(4, 4, 1),
            nn.ConvTranspose3d(4, 4, 1),
        )
        self.attention, self.embedding = (
            nn.MultiheadAttention(16, 2, batch_first=True),
            nn.Embedding(4, 16),
        )
        self.pair = nn.Bilinear(16, 16, 16)

    def forward(self, x):
        x = self.up3(self.conv3(x.unsqueeze(2))).squeeze(2)
        x = self.up1(self.conv1(self.up(x).flatten(2)))
        x = x + self.embedding.weight.unsqueeze(0)
        x = (x + self.attention(x, x, x)[0]).mean(1)
        return self.head(torch.relu(self.pair(x, x)))


def test_all_layer_types_are_pruned_and_other_parameters_are_named(small_args, monkeypatch, capsys):
    monkeypatch.setattr(archs, "build", lambda *_: Odd())
    args = small_args(
        end_iter=1, prune_iterations=2, prune_percent_output=50, prune_percent_conv=30
    )
    main.main(args)
    masks = ticket(args, 1)["masks"]
    gone = {name: round(100 * (~mask).double().mean().item()) for name, mask in masks.items()}
    convolutions = ("conv1", "conv3", "up", "up1", "up3")
    expected = {f"{name}.weight": pytest.approx(30, abs=4) for name in convolutions}
    expected |= {"attention.out_proj.weight": 20, "pair.weight": 20, "head.weight": 50}
    assert gone == expected
    output = capsys.readouterr().out
    assert output.count("not pruned: ") == 1
    assert "not pruned: attention.in_proj_weight (48, 16), embedding.weight (4, 16)\n" in output


@pytest.mark.parametrize(("head_first", "output"), [(True, "0.weight"), (False, "2.weight")])
def test_the_output_layer_is_the_one_called_last(head_first, output, small_args, monkeypatch):
    class Swapped(nn.Sequential):
        def forward(self, x):
            body, flatten, head = (self[2], self[1], self[0]) if head_first else self
            return head(body(flatten(x)) if head_first else flatten(body(x.flatten(1))))

    sizes = ((784, 10), (784, 784)) if head_first else ((784, 784), (784, 10))
    model = Swapped(nn.Linear(*sizes[0]), nn.Flatten(), nn.Linear(*sizes[1]))
    args = small_args(prune_percent_output=5)
    found = main.layer_percents(args, model, main.inspect_network(args, model)[0])
    assert found == {name: 5 if name == output else 20 for name in ("0.weight", "2.weight")}


class FunctionalHead(nn.Module):
    """A network that uses its output layer as a function, which no hook sees."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(784, 30)
        self.head = nn.Linear(30, 10)

    def forward(self, x):
        hidden = torch.relu(self.body(x.flatten(1)))
        return nn.functional.linear(hidden, self.head.weight, self.head.bias)


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "rates",
    [{"prune_percent_output": 10}, {"prune_percent_conv": 15}, {"prune_percent_downsample": 15}],
)
def test_an_output_layer_that_is_not_called_is_refused_if_rates_differ(
    rates, scope, small_args, monkeypatch
):
    monkeypatch.setattr(archs, "build", lambda *_: FunctionalHead())
    monkeypatch.setattr(main, "train", None)
    message = "the layer that fc1 calls last does not have as many outputs as there are classes"
    with pytest.raises(utils.BadInput, match=message):
        main.main(small_args(prune_scope=scope, **rates))


def test_an_output_layer_that_is_not_called_is_pruned_as_all_others(small_args, monkeypatch):
    monkeypatch.setattr(archs, "build", lambda *_: FunctionalHead())
    args = small_args(prune_iterations=2, end_iter=1)
    main.main(args)
    masks = ticket(args, 1)["masks"]
    assert int(masks["head.weight"].sum()) == 240
    assert int(masks["body.weight"].sum()) == round(0.8 * 784 * 30)


def test_a_convolution_may_be_the_output_layer(small_args):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 10, 26), nn.Flatten())
    args = small_args(prune_percent_conv=15, prune_percent_output=5)
    output, _ = main.inspect_network(args, model)
    assert main.layer_percents(args, model, output) == {"0.weight": 15, "1.weight": 5}


@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm", "orthogonal"])
def test_parametrized_layers_are_refused(norm, small_args, monkeypatch):
    """Spectral norm iterates whenever its weight is read."""
    parametrized = getattr(nn.utils.parametrizations, norm)

    def build(*_):
        return nn.Sequential(nn.Flatten(), parametrized(nn.Linear(784, 10)))

    monkeypatch.setattr(archs, "build", build)
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=r"fc1.py: parametrized layers"):
        main.main(small_args())


def test_buffers_that_are_not_saved_are_refused(small_args, monkeypatch):
    def build(*_):
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.BatchNorm1d(10))
        model[1].register_buffer("saved", torch.ones(1))
        model[1].register_buffer("calls", torch.ones(1), persistent=False)
        return model

    monkeypatch.setattr(archs, "build", build)
    monkeypatch.setattr(main, "train", None)
    message = r"neither saved nor reset: register 1\.calls without persistent=False"
    with pytest.raises(utils.BadInput, match=message):
        main.main(small_args())


def test_a_network_without_prunable_layers_is_refused(small_args, monkeypatch):
    monkeypatch.setattr(
        archs, "build", lambda *_: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
    )
    with pytest.raises(utils.BadInput, match="no convolution or linear layer"):
        main.main(small_args())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("graph", ["frozen", "unused"])
def test_frozen_and_unused_parameters_do_not_change(
    graph, optimizer, small_args, starts, monkeypatch
):
    """All other parameters learn as with torch.optim's classes."""

    class Net(nn.Sequential):
        def forward(self, x):
            return self[2](torch.relu(self[1](self[0](x))))

    def build(*_):
        net = Net(
            nn.Flatten(),
            nn.Linear(784, 8),
            nn.Linear(8, 10),
            *([nn.Linear(3, 3)] if graph == "unused" else []),
        )
        if graph == "frozen":
            net[1].requires_grad_(False)
        return net

    monkeypatch.setattr(archs, "build", build)
    args = small_args(prune_iterations=2, optimizer=optimizer, lr=0.01, weight_decay=0.1)
    main.main(args)
    kind = {"adam": ADAM, "adamw": ADAMW, "sgd": partial(SGD, momentum=0.9)}[optimizer]
    kind = partial(kind, lr=0.01, fused=True, weight_decay=0.1)
    check_training(args, starts, kind, range(40), lambda *_: 0.01)
    still = ("1.weight", "1.bias") if graph == "frozen" else ("3.weight", "3.bias")
    for round_, (state, _) in enumerate(starts):
        final = ticket(args, round_)["final"]
        assert all(torch.equal(final[name], state[name]) for name in still)
        assert not torch.equal(final["2.weight"], state["2.weight"])
