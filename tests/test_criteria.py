"""Which weights survive: every criterion, before and after training, and one-shot pruning."""

import copy
import itertools
import re
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.random import SeedSequence
from torch import nn

import archs
import main
import utils
from conftest import (
    arrays,
    check_masks,
    finished_rounds,
    grouped,
    needs_gpu,
    same,
    small_data,
    small_network,
    ticket,
    trial_data,
)

pytestmark = pytest.mark.usefixtures("undrawn")

# The scores of a layer: w_f, w_i are NumPy arrays.
FORMULAS = {
    "magnitude": lambda final, initial: np.abs(final),
    "increase": lambda final, initial: np.abs(final) - np.abs(initial),
    "movement": lambda final, initial: np.abs(final - initial),
    "initial": lambda final, initial: np.abs(initial),
    "same_sign": lambda final, initial: np.where(initial < 0, -final, final),
}
BEFORE = ["snip", "grasp", "synflow"]
PATHS = [{"criterion": name} for name in main.CRITERIA] + [{"one_shot": True}]


def scores_after_training(criterion, final, initial, masks):
    """Return the scores by FORMULAS, NumPy arrays by layer, from two state dicts."""
    formula = FORMULAS[criterion]
    return {name: formula(final[name].numpy(), initial[name].numpy()) for name in masks}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"prune_scope": "global"},
        {"rewind_iter": 13},
        {"prune_type": "reinit", "prune_scope": "global"},
        {"prune_type": "shuffle", "prune_scope": "erk"},
        {"prune_type": "signed_constant"},
        {"prune_type": "lr_rewind"},
    ],
    ids=str,
)
@pytest.mark.parametrize("criterion", FORMULAS)
def test_weights_are_ranked_after_training(criterion, flags, small_args, starts, monkeypatch):
    """By the weights at the end of each round, and those that it started from."""
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(criterion=criterion, **flags)
    main.main(args)
    reset_to = torch.load(utils.Files(args).initial, weights_only=True)
    for round_ in range(2):
        (state, before), (_, after) = starts[round_ : round_ + 2]
        if args.rewind_iter:
            state = reset_to
        final = ticket(args, round_)["final"]
        scores = scores_after_training(criterion, final, state, before)
        check_masks(scores, before, after, args.prune_scope)


@pytest.mark.parametrize("criterion", FORMULAS)
def test_random_masks_have_the_counts_of_a_criterion(criterion, small_args, starts):
    args = small_args(prune_type="random", criterion=criterion, prune_scope="global")
    main.main(args)
    (_, before), (_, after) = starts[:2]
    initial = main.new_model(args, 0).state_dict()
    final = ticket(args, 0)["final"]
    scores = scores_after_training(criterion, final, initial, before)
    tensors = {name: torch.tensor(score) for name, score in scores.items()}
    expected = main.prune(tensors, before, 20, "global")
    assert not same(after, expected)
    for name in before:
        assert after[name].sum() == expected[name].sum()


def test_weights_that_changed_their_sign_are_pruned_first_the_largest_before_others():
    final = torch.tensor([3.0, 0.5, -2.0, -0.5, 1.0, -4.0])
    initial = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    masks = {"a": torch.ones(6, dtype=torch.bool)}
    pruned = []
    for percent in (17, 34, 50, 67, 84):
        scores = {"a": main.same_sign.__wrapped__(final, initial)}
        left = main.prune(scores, masks, percent)["a"]
        pruned.append((~left).nonzero().squeeze(1).tolist())
    assert pruned == [[2], [1, 2], [1, 2, 3], [1, 2, 3, 4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    "flags",
    [
        {"prune_type": "constant", "criterion": "initial"},
        {"arch_type": "lenet5", "criterion": "synflow"},  # tanh saturates, so gradients are 0
    ],
    ids=str,
)
def test_ties_are_pruned_by_count(flags, scope, small_args, starts):
    args = small_args(prune_scope=scope, end_iter=1, **flags)
    main.main(args)
    for (_, before), (_, after) in itertools.pairwise(starts):
        for group in grouped(before, scope):
            n = sum(int(before[name].sum()) for name in group)
            assert sum(int(after[name].sum()) for name in group) == n - round(0.2 * n)
        assert not any((after[name] & ~before[name]).any() for name in before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error(value, small_args, monkeypatch):
    def spoil(final, initial):
        scores = final.abs()
        scores.view(-1)[7] = value
        return scores

    monkeypatch.setitem(main.CRITERIA, "magnitude", main.Criterion("", main.elementwise(spoil)))
    with pytest.raises(utils.Failure, match=r"a score of 1\.weight is not finite in round 0"):
        main.main(small_args())


@pytest.mark.parametrize(
    "scores",
    [
        None,
        {},
        {"1.weight": None},
        {"1.weight": np.ones((300, 784))},
        {"1.weight": torch.rand(300, 784)},
    ],
)
def test_missing_scores_are_an_error_before_training_and_the_run_resumes(
    scores, small_args, monkeypatch
):
    """Or later, if the function returns them only at first."""
    args = small_args(prune_iterations=2)
    name = "3" if scores and isinstance(scores["1.weight"], torch.Tensor) else "1"
    match = rf"no scores of shape .* for {name}\.weight\. Let it return .* command to resume"
    for good in (0, 1):  # calls, of which the first is before training
        calls = itertools.count()

        def score(args, model, initial, masks, data, calls=calls, good=good):
            return (
                main.magnitude(args, model, initial, masks, data) if next(calls) < good else scores
            )

        with monkeypatch.context() as patch, pytest.raises(utils.Failure, match=match):
            patch.setitem(main.CRITERIA, "magnitude", main.Criterion("", score))
            main.main(args)
        assert finished_rounds(args) == good
    main.main(args)
    assert finished_rounds(args) == 2


def test_scores_of_pruned_weights_do_not_matter(small_args, monkeypatch):
    """Such as 0 / 0."""
    growth = main.elementwise(lambda final, initial: final.abs() / initial.abs())
    monkeypatch.setitem(main.CRITERIA, "magnitude", main.Criterion("", growth))
    args = small_args()
    main.main(args)
    assert finished_rounds(args) == 3


def test_a_criterion_may_draw_and_may_change_what_it_gets(
    small_args, starts, tmp_path, monkeypatch
):
    """It draws the same if the run resumes, and other numbers in each round."""

    def draw(args, model, initial, masks, data):
        for tensor in (*model.parameters(), *initial.values(), *masks.values()):
            tensor.detach().zero_()
        scores = {name: torch.rand(mask.shape) for name, mask in masks.items()}
        drawn.append(scores["5.weight"][0, 0].item())
        return scores

    drawn = []
    monkeypatch.setitem(main.CRITERIA, "magnitude", main.Criterion("", draw))
    main.main(small_args(one_shot=True))
    for rounds in (2, 3):
        torch.rand(rounds)
        flags = {"one_shot": True, "prune_iterations": rounds, "output_dir": tmp_path}
        main.main(small_args(**flags))
    assert same([*map(list, starts[:3])], [*map(list, starts[3:])])
    initial = main.new_model(small_args(), 0).state_dict()
    for round_, (state, masks) in enumerate(starts[:3]):
        for name, mask in masks.items():
            assert torch.equal(state[name], initial[name] * mask)
            assert mask.double().mean() == pytest.approx(0.8**round_, abs=1e-3)
    assert len(set(drawn)) == 2


# Before training


class Layers(nn.Sequential):
    """Two linear layers with ReLU, which record their inputs and modes."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__(
            nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.seen = []

    def forward(self, x):
        self.seen.append((self.training, x.detach().clone()))
        return super().forward(x)


def layers(monkeypatch, inputs, outputs):
    """Make archs.build return networks of two layers with random biases; return their list."""
    built = []

    def build(*_):
        built.append(Layers(inputs, 3, outputs))
        return built[-1]

    def initialize(model):
        for parameter in model.parameters():
            nn.init.normal_(parameter)

    monkeypatch.setattr(archs, "build", build)
    monkeypatch.setattr(archs, "initializer", lambda *_: initialize)
    return built


def score(args, state, data):
    return main.score_weights(utils.Run(args), state, data)


def snip_by_hand(state, images, labels):
    """Return |w * dL/dw| of the two layers, with NumPy."""
    w1, b1, w2, b2 = (tensor.numpy().astype(float) for tensor in state.values())
    gradients = gradients_by_hand((w1, b1, w2, b2), images, labels)
    return [np.abs(w * gradient) for w, gradient in zip((w1, w2), gradients, strict=True)]


def gradients_by_hand(parameters, images, labels, temperature=1):
    """Return dL/dw of the two layers, with NumPy; the logits are divided by the temperature."""
    w1, b1, w2, b2 = parameters
    x = images.reshape(len(images), -1).astype(float)
    before_relu = x @ w1.T + b1
    hidden = np.maximum(before_relu, 0)
    logits = (hidden @ w2.T + b2) / temperature
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    slope = (p - np.eye(p.shape[1])[labels]) / len(labels) / temperature
    slope_hidden = slope @ w2 * (before_relu > 0)
    return [slope_hidden.T @ x, slope.T @ hidden]


def test_snip_by_hand(small_args, monkeypatch):
    """On all of exactly 100 training examples per class, so that it does not matter which."""
    layers(monkeypatch, 16, 10)
    args = small_args(criterion="snip")
    data = small_data(1336, size=4)
    data.train = tuple(tensor[:1000] for tensor in data.train)
    state = main.new_state(args, main.new_model(args, 0))
    found = score(args, state, data)
    images, labels = data.train
    expected = snip_by_hand(state.initial, data.normalize(images).numpy(), labels.numpy())
    assert list(found) == ["1.weight", "3.weight"]
    for one, other in zip(found.values(), expected, strict=True):
        assert one.numpy() == pytest.approx(other, rel=1e-9, abs=1e-15)  # in double precision


def places_of(inputs, data):
    """Return the indices of training examples, given the inputs of a network."""
    everything = data.normalize(data.train[0]).flatten(1).double()
    places = torch.cdist(inputs.flatten(1), everything).argmin(1)
    assert torch.equal(everything[places], inputs.flatten(1))
    return places


@pytest.mark.parametrize(("examples", "batches"), [(2000, 10), (1000, 7), (120, 1), (40, 1)])
def test_snip_uses_100_training_examples_per_class_that_the_seed_chooses(
    examples, batches, small_args, monkeypatch
):
    """In batches of 100, in training mode."""
    chosen = []
    for seed in (0, 0, 1):
        built = layers(monkeypatch, 16, 10)
        args = small_args(criterion="snip", seed=seed)
        data = small_data(examples, size=4)
        found = score(args, main.new_state(args, main.new_model(args, 0)), data)
        seen = built[-1].seen
        n = min(100, len(data.train[1]))
        assert [(training, len(x)) for training, x in seen] == [(True, n)] * batches
        chosen.append(torch.cat([x for _, x in seen]))
        places = places_of(chosen[-1], data)
        assert len(set(places.tolist())) == len(places), "an example was used twice"

        state = main.new_model(args, 0).state_dict()
        images, labels = (tensor[places] for tensor in data.train)
        expected = snip_by_hand(state, data.normalize(images).numpy(), labels.numpy())
        for one, other in zip(found.values(), expected, strict=True):
            assert one.numpy() == pytest.approx(other, rel=1e-9, abs=1e-15)
    first, again, other = chosen
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def grasp_by_hand(state, images, labels):
    """Return w * Hg of the two layers, from differences of the gradient in the direction of g."""
    w1, b1, w2, b2 = (tensor.numpy().astype(float) for tensor in state.values())
    g1, g2 = gradients_by_hand((w1, b1, w2, b2), images, labels, 200)
    step = 1e-3
    there, back = (
        gradients_by_hand((w1 + h * g1, b1, w2 + h * g2, b2), images, labels, 200)
        for h in (step, -step)
    )
    products = [(one - other) / (2 * step) for one, other in zip(there, back, strict=True)]
    return [w1 * products[0], w2 * products[1]]


@pytest.mark.parametrize(("dataset", "classes"), [("digits", 10), ("cifar100", 100)])
def test_grasp_uses_ten_training_examples_of_each_class_that_the_seed_chooses(
    dataset, classes, small_args, monkeypatch
):
    """In batches of 100, in training mode, first for the whole gradient, and then for Hg."""
    chosen = []
    for seed in (0, 0, 1):
        built = layers(monkeypatch, 16, classes)
        args = small_args(criterion="grasp", dataset=dataset, seed=seed)
        data = small_data(28 * classes, size=4, classes=classes)
        found = score(args, main.new_state(args, main.new_model(args, 0)), data)
        seen = built[-1].seen
        assert [(training, len(x)) for training, x in seen] == [(True, 100)] * (classes // 5)
        inputs = torch.cat([x for _, x in seen])
        assert torch.equal(*inputs.chunk(2))
        chosen.append(inputs.chunk(2)[0])
        places = places_of(chosen[-1], data)
        labels = data.train[1][places]
        assert len(set(places.tolist())) == len(places), "an example was used twice"
        assert labels.bincount().tolist() == [10] * classes
        assert len(labels[:100].unique()) > classes / 2, "batches are sorted by class"

        images = data.normalize(data.train[0][places]).numpy()
        expected = grasp_by_hand(main.new_model(args, 0).state_dict(), images, labels.numpy())
        for one, other in zip(found.values(), expected, strict=True):
            assert one.dtype == torch.float64
            assert one.numpy() == pytest.approx(other, rel=1e-4, abs=1e-5 * np.abs(other).max())
    first, again, other = chosen
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_grasp_uses_fewer_examples_of_small_classes(small_args, monkeypatch):
    built = layers(monkeypatch, 16, 10)
    args = small_args(criterion="grasp")
    data = small_data(600, size=4)
    data.train[1].copy_(torch.tensor([0] * 440 + [2] * 7 + [3] * 3))
    score(args, main.new_state(args, main.new_model(args, 0)), data)
    (_, inputs), _ = built[-1].seen
    assert data.train[1][places_of(inputs, data)].bincount().tolist() == [10, 0, 7, 3]


def test_grasp_drops_the_same_units_for_the_gradient_and_for_its_product(small_args, monkeypatch):
    """So the sum of g * Hg is that of one function."""
    drawn = []

    class Dropout(nn.Module):
        def forward(self, x):
            drawn.append(torch.rand(x.shape))
            return x * (drawn[-1] < 0.5)

    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), Dropout(), nn.ReLU(), nn.Linear(8, 10))
    monkeypatch.setattr(archs, "build", lambda *_: network)
    args = small_args(criterion="grasp")
    score(args, main.new_state(args, main.new_model(args, 0)), small_data(600, size=4))
    first, second = drawn
    assert torch.equal(first, second)


class Once(torch.autograd.Function):
    """The identity, without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient


class Single(nn.Linear):
    """A layer that always computes in single precision."""

    def forward(self, x):
        return F.linear(x.float(), self.weight, self.bias)


class WithOnce(nn.Linear):
    def forward(self, x):
        return Once.apply(super().forward(x))


class Attention(nn.Linear):
    def forward(self, x):
        x = super().forward(x).view(-1, 1, 5, 2)
        return F.scaled_dot_product_attention(x, x, x).flatten(1)


@pytest.mark.parametrize(
    ("layer", "criterion", "reason"),
    [
        (WithOnce, "grasp", "differentiate twice"),
        (Attention, "grasp", "scaled_dot_product.*not implemented"),
        *((Single, name, "dtype") for name in BEFORE),
    ],
)
def test_networks_that_cannot_be_scored_are_refused_before_training(
    layer, criterion, reason, small_args, monkeypatch
):
    """And before results are deleted."""
    monkeypatch.setattr(archs, "build", lambda *_: nn.Sequential(nn.Flatten(), layer(784, 10)))
    main.main(small_args(prune_iterations=1))
    monkeypatch.setattr(main, "experiment", None)
    monkeypatch.setattr(utils.Run, "clear", None)
    match = f"^--criterion={criterion} cannot score fc1: .*{reason}.*Use another criterion$"
    with pytest.raises(utils.BadInput, match=match):
        main.main(small_args(criterion=criterion, overwrite=True))


@pytest.mark.parametrize("criterion", BEFORE)
def test_scores_before_training_are_precise_with_amp(criterion, small_args, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    found = []
    for flags in ({}, {"amp": True}):
        args = small_args(criterion=criterion, **flags)
        found.append(score(args, main.new_state(args, main.new_model(args, 0)), small_data(480)))
        assert all(tensor.dtype == torch.float64 for tensor in found[-1].values())
    assert same(*found)


def test_scores_before_training_that_are_not_finite_are_an_error_before_training(
    small_args, monkeypatch
):
    """As of a network whose second derivatives are 0 times infinity."""

    class Power(nn.Linear):
        def forward(self, x):
            return (super().forward(x).relu() * 0).pow(1.5)

    monkeypatch.setattr(archs, "build", lambda *_: nn.Sequential(nn.Flatten(), Power(784, 10)))
    monkeypatch.setattr(main, "experiment", None)
    match = r"--criterion=grasp: a score of 1\.weight is not finite in round 0"
    with pytest.raises(utils.Failure, match=match):
        main.main(small_args(criterion="grasp"))


def test_a_criterion_is_tried_before_training_with_all_examples(small_args, monkeypatch):
    seen = []

    def score(args, model, initial, masks, data):
        seen.append([len(part[1]) for part in (data.train, data.val, data.test)])
        return {name: torch.rand(mask.shape) for name, mask in masks.items()}

    monkeypatch.setitem(main.CRITERIA, "magnitude", main.Criterion("", score))
    main.main(small_args(end_iter=1, prune_iterations=2))
    assert seen == [[1237, 200, 360]] * 2


def test_snip_needs_no_second_derivatives(small_args, monkeypatch):
    monkeypatch.setattr(archs, "build", lambda *_: nn.Sequential(nn.Flatten(), WithOnce(784, 10)))
    args = small_args(criterion="snip")
    main.main(args)
    assert finished_rounds(args) == 3


def test_a_network_need_not_be_scored_if_the_masks_are_those_of_another_run(
    small_args, monkeypatch
):
    main.main(small_args())
    monkeypatch.setattr(main, "apply_criterion", None)
    args = small_args(prune_type="reinit", masks_from="lt")
    main.main(args)
    assert finished_rounds(args) == 3


def synflow_network():
    """Return a network of two layers and batch norm, with masks and the scores of its weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    model.register_buffer("switch", torch.tensor(True))  # has no absolute value
    state = {
        "1.weight": [[1.0, -2.0], [3.0, 4.0]],
        "1.bias": [-1.0, 2.0],
        "2.weight": [-2.0, 1.0],
        "2.bias": [0.0, -3.0],
        "2.running_mean": [-1.0, 2.0],
        "2.running_var": [0.25, 4.0],
        "2.num_batches_tracked": 5,
        "3.weight": [[-5.0, 0.5]],
        "3.bias": [-7.0],
        "switch": True,
    }
    model.load_state_dict({name: torch.tensor(values) for name, values in state.items()})
    model[2].eps = 1e-30  # torch 2.11 refuses 0
    masks = {
        "1.weight": torch.tensor([[True, True], [False, True]]),
        "3.weight": torch.tensor([[True, True]]),
    }
    # Hidden units after batch norm: 2 (1 + 2 + 1 - 1) / 0.5 = 12 and (4 + 2 - 2) / 2 + 3 = 5.
    scores = {
        "1.weight": [[5 * 4 * 1, 5 * 4 * 2], [0, 0.5 * 0.5 * 4]],
        "3.weight": [[5 * 12, 0.5 * 5]],
    }
    return model, masks, scores


def test_synflow_by_hand(small_args, monkeypatch):
    """In eval mode, with absolute values of parameters and buffers, and without pruned weights."""
    monkeypatch.setattr(archs, "build", lambda *_: synflow_network()[0])
    monkeypatch.setattr(archs, "initializer", lambda *_: lambda _: None)
    args = small_args(criterion="synflow")
    model, masks, expected = synflow_network()
    state = main.new_state(args, model)
    state.masks = masks
    data = small_data(8)
    data.train = (torch.zeros(6, 1, 1, 2, dtype=torch.uint8), data.train[1])
    found = score(args, state, data)
    assert {name: tensor.tolist() for name, tensor in found.items()} == expected
    assert all(tensor.dtype == torch.float64 for tensor in found.values())


def test_synflow_does_not_overflow(small_args, monkeypatch):
    def initialize(model):
        for parameter in model.parameters():
            nn.init.constant_(parameter, -1e30)

    layers(monkeypatch, 4, 2)
    monkeypatch.setattr(archs, "initializer", lambda *_: initialize)
    args = small_args(criterion="synflow")
    found = score(args, main.new_state(args, main.new_model(args, 0)), small_data(8, size=2))
    assert found["1.weight"].tolist() == [pytest.approx([2e60] * 4)] * 3


@pytest.mark.parametrize("round_", [0, 2])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_scoring_leaves_no_trace(path, round_, small_args, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(prune_type="reinit", **path)
    state = main.new_state(args, main.new_model(args, 0))
    data = small_data(480)
    run = utils.Run(args)
    final = main.new_model(args, 5).state_dict()
    monkeypatch.setattr(utils, "first_weights", lambda *_: final)
    step = main.Step(args, state, data)
    for _ in range(3):
        step()
    state.round = round_
    before = utils.snapshot(vars(state))
    gradients = [parameter.grad.clone() for parameter in state.model.parameters()]
    main.score_weights(run, state, data)
    assert same(utils.snapshot(vars(state)), before)
    assert state.model.training
    for parameter, gradient in zip(state.model.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("criterion", BEFORE)
@pytest.mark.parametrize("arch_type", archs.architectures("digits"))
def test_all_architectures_can_be_scored_before_training(arch_type, criterion, small_args):
    args = small_args(arch_type=arch_type, criterion=criterion)
    state = main.new_state(args, main.new_model(args, 0))
    found = score(args, state, small_data(8))
    assert list(found) == list(main.prunable(state.model))
    scored = {name: (tensor != 0).double().mean() for name, tensor in found.items()}
    if arch_type == "lenet5" and criterion == "synflow":
        assert scored.popitem()[1] == 1  # of the output layer; before it, tanh saturates
    else:
        assert min(scored.values()) > 0.1  # units that are never active have 0


@pytest.mark.parametrize("criterion", BEFORE)
@pytest.mark.parametrize("flags", [{}, {"rewind_iter": 13}], ids=str)
def test_what_lt_resets_to_is_ranked_before_training(criterion, flags, small_args, starts):
    """By every prune type, so all of them have the same masks, and the densities of magnitude."""
    kinds = ["lt", "random"] if flags else ["lt", "signed_reinit", "lr_rewind"]
    found = {}
    for kind in kinds:
        args = small_args(
            prune_type=kind, criterion=criterion, prune_scope="global", lr_milestones="30", **flags
        )
        main.main(args)
        found[kind] = [masks for _, masks in starts]
        starts.clear()
    data = trial_data(args)
    model = main.new_model(args, 0)
    model.load_state_dict(torch.load(utils.Files(args, "lt").initial, weights_only=True))
    if flags:
        assert not same(model.state_dict(), main.new_model(args, 0).state_dict())
    for round_ in range(2):
        before, after = found["lt"][round_ : round_ + 2]
        scores = reference(criterion, args, model.state_dict(), before, data)
        check_masks(scores, before, after, "global")
        for kind in kinds:
            if kind != "random":
                assert same(found[kind][round_ + 1], after), kind
    if "random" in kinds:  # its later masks are its own
        for name, mask in found["random"][1].items():
            assert mask.sum() == found["lt"][1][name].sum()


def reference(criterion, args, state, masks, data):
    """Return the scores of fc1 by their formula, in double precision, as NumPy arrays by layer."""
    parameters = {name: tensor.double() for name, tensor in state.items()}
    if criterion == "synflow":
        for name, tensor in parameters.items():
            parameters[name] = (tensor * masks.get(name, 1)).abs()
        x = torch.ones(1, 784, dtype=torch.float64)
    else:
        key = SeedSequence(args.seed, spawn_key=(0, 0, 0)).generate_state(1, np.uint64)
        order = torch.randperm(1237, generator=torch.Generator().manual_seed(int(key[0])))
        if criterion == "grasp":
            seen = Counter()
            rank = []
            for label in data.train[1][order].tolist():
                seen[label] += 1
                rank.append(seen[label])
            order = order[torch.tensor(rank) <= 10]
        images, labels = (tensor[order[:1000]] for tensor in data.train)
        x = data.normalize(images).flatten(1).double()

    def loss(*weights):
        w1, w2, w3 = weights
        b1, b2, b3 = (parameters[f"{name}.bias"] for name in (1, 3, 5))
        logits = F.relu(F.relu(x @ w1.T + b1) @ w2.T + b2) @ w3.T + b3
        if criterion == "synflow":
            return logits.sum()
        return F.cross_entropy(logits / (200 if criterion == "grasp" else 1), labels)

    weights = tuple(parameters[name] for name in masks)
    factors = torch.autograd.functional.jacobian(loss, weights)
    if criterion == "grasp":
        _, factors = torch.autograd.functional.vhp(loss, weights, factors)
    scores = [(w * factor).numpy() for w, factor in zip(weights, factors, strict=True)]
    if criterion != "grasp":
        scores = map(abs, scores)
    return dict(zip(masks, scores, strict=True))


# One-shot pruning


@pytest.mark.parametrize("criterion", FORMULAS)
@pytest.mark.parametrize(
    "flags",
    [{}, {"rewind_iter": 13, "prune_scope": "global"}, {"prune_type": "reinit"}],
    ids=str,
)
def test_one_shot_ranks_by_the_end_of_round_0(flags, criterion, small_args, starts, monkeypatch):
    """A round's survivors are those that pruning once to its density would leave.

    Best validation, which here is after the first epoch of two, plays no role.
    """
    scores = itertools.cycle([0.0, 0.0, 90.0, 90.0, 80.0, 80.0, 50.0])
    monkeypatch.setattr(main, "evaluate", lambda *_: (1.0, next(scores)))
    args = small_args(one_shot=True, criterion=criterion, **flags)
    main.main(args)
    initial = main.new_model(args, 0).state_dict()
    if args.rewind_iter:
        initial = torch.load(utils.Files(args).initial, weights_only=True)
    final = ticket(args, 0)["final"]
    scores = scores_after_training(criterion, final, initial, starts[0][1])
    for round_ in range(2):
        check_masks(scores, starts[round_][1], starts[round_ + 1][1], args.prune_scope)
    kept = {name: mask.numpy() for name, mask in starts[2][1].items()}
    dense = {name: np.ones_like(mask) for name, mask in kept.items()}
    for group in grouped(kept, args.prune_scope):
        total = sum(dense[name].size for name in group)
        remaining = sum(int(kept[name].sum()) for name in group)
        highest = np.sort(np.concatenate([scores[name].ravel() for name in group]))[-remaining:]
        assert remaining == pytest.approx(0.64 * total, abs=1)
        assert all((scores[name][kept[name]] >= highest[0]).all() for name in group)


def test_one_shot_has_the_same_masks_for_all_prune_types(small_args, starts):
    found = []
    for kind in ("lt", "reinit", "shuffle", "signed_constant"):
        main.main(small_args(one_shot=True, prune_type=kind, criterion="movement"))
        found.append([masks for _, masks in starts])
        starts.clear()
    for masks in found:
        assert same(masks, found[0])


@pytest.mark.parametrize("damage", ["missing", "damaged", "of another network"])
def test_one_shot_needs_the_ticket_of_round_0(damage, small_args, monkeypatch):
    main.main(small_args(one_shot=True, prune_iterations=2))
    args = small_args(one_shot=True)
    path = utils.Files(args).ticket(0)
    if damage == "missing":
        path.unlink()
    elif damage == "damaged":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    else:
        other = small_args(arch_type="lenet5", prune_iterations=1, output_dir=path.parent / "other")
        main.main(other)
        path.write_bytes(utils.Files(other).ticket(0).read_bytes())
    monkeypatch.setattr(main, "train", None)
    utils.Files(args).ticket(1).unlink()  # the second round is not finished
    with pytest.raises(utils.BadInput, match=rf"{re.escape(str(path))} is {damage}.* --overwrite"):
        main.main(args)


# Runs


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_trials_and_resuming_give_the_same_bytes(path, small_args, tmp_path, monkeypatch):
    monkeypatch.setattr(archs, "build", small_network)
    flags = path | {"trials": 2, "prune_scope": "global", "rewind_iter": 13}
    main.main(small_args(**flags))
    flags["output_dir"] = tmp_path / "b"
    for rounds in (1, 2, 3):
        main.main(small_args(**flags, prune_iterations=rounds))
    for seed in (0, 1):
        one, other = (
            arrays(small_args(**path, seed=seed, output_dir=tmp_path / name))
            for name in ("out", "b")
        )
        assert one == other
        assert one


def test_every_criterion_gives_other_masks(small_args, tmp_path):
    """So does one-shot pruning, but all have the same densities."""
    masks, densities = [], []
    paths = [{"criterion": name} for name in (*FORMULAS, *BEFORE)] + [{"one_shot": True}]
    for i, path in enumerate(paths):
        args = small_args(**path, prune_scope="global", output_dir=tmp_path / str(i))
        main.main(args)
        masks.append(ticket(args, 2)["masks"])
        densities.append(np.load(utils.Files(args).array("compression")).tolist())
    for one, other in itertools.combinations(masks, 2):
        assert not same(one, other)
    assert all(density == densities[0] for density in densities)


@pytest.mark.parametrize("kind", ["lr_rewind", "finetune"])
def test_networks_that_keep_training_may_have_the_masks_of_any_criterion(kind, small_args, starts):
    flags = {"criterion": "movement", "lr_milestones": "30"}
    main.main(small_args(**flags))
    main.main(small_args(**flags, prune_type=kind, masks_from="lt"))
    assert same(starts[2][1], starts[5][1])


def test_masks_from_lt_need_its_criterion(small_args):
    main.main(small_args(criterion="movement"))
    with pytest.raises(utils.BadInput, match="made with --criterion=movement, not magnitude"):
        main.main(small_args(prune_type="reinit", masks_from="lt"))


def test_snip_works_if_train_returns_nothing(small_args, undrawn, monkeypatch):
    """As in networks that keep their batch norm in evaluation mode, and forget to return self."""

    class Network(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    network = Network(nn.Flatten(), nn.Linear(784, 10))
    monkeypatch.setattr(archs, "build", lambda *_: copy.deepcopy(network))
    args = small_args(criterion="snip", prune_iterations=2)
    main.main(args)
    assert int(ticket(args, 1)["masks"]["1.weight"].sum()) == round(0.8 * 7840)


def test_a_note_names_the_layers_that_a_criterion_empties(small_args, undrawn, monkeypatch, capsys):
    def score(args, model, initial, masks, data):
        weights = main.prunable(model)
        return {name: weights[name].abs() + (name != "1.weight") for name in masks}

    table = main.CRITERIA | {"emptying": main.Criterion("", score)}
    monkeypatch.setattr(main, "CRITERIA", table)
    args = small_args(criterion="emptying", prune_scope="global", prune_percent=89)
    main.main(args)
    assert not ticket(args, 1)["masks"]["1.weight"].any()
    notes = [line for line in capsys.readouterr().out.splitlines() if "no weights left" in line]
    assert notes == ["note: round 1 has no weights left in 1.weight"]


def test_a_run_does_not_resume_with_another_criterion(small_args):
    main.main(small_args(prune_iterations=1))
    with pytest.raises(utils.BadInput, match="has results with --criterion=magnitude, not snip"):
        main.main(small_args(criterion="snip"))
    with pytest.raises(utils.BadInput, match="has results with --one_shot=False, not True"):
        main.main(small_args(one_shot=True))


@needs_gpu
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_on_a_gpu_scores_are_those_of_the_cpu(path, small_args, monkeypatch):
    found = []
    args = small_args(**path)
    for device in ("cpu", "cuda"):
        data = small_data(2000, device=device)
        state = main.new_state(args, main.new_model(args, 0, device))
        state.model.load_state_dict(main.new_model(args, 5).state_dict())
        weights = main.new_model(args, 6).state_dict()
        monkeypatch.setattr(utils, "first_weights", lambda *_, weights=weights: weights)
        found.append(main.score_weights(utils.Run(args), state, data))
    for name, scores in found[1].items():
        assert scores.is_cuda
        assert scores.cpu().numpy() == pytest.approx(found[0][name].numpy(), rel=0.02, abs=1e-6)
