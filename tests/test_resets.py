"""What the survivors become: every prune type, the untrained ticket, and training accuracy."""

import itertools
import signal
from functools import partial

import numpy as np
import pytest
import torch

import archs
import main
import utils
from conftest import arrays, check_training, log_rows, same, small_network, ticket, trial_data

pytestmark = pytest.mark.usefixtures("undrawn")

REPLACED = ["shuffle", "constant", "signed_reinit", "signed_shuffle", "signed_constant"]
KEPT = ["lr_rewind", "finetune"]
STILL = {"lr": 1e-12, "lr_milestones": "30"}  # a schedule, but no weight changes by more than 1e-9


def check_weights(kind, weights, initial, drawn, mask):
    """Assert that the survivors of a layer became what the prune type says.

    `weights` are those at the start of a round, `initial` those of round 0, `drawn` those that
    reinit draws. All tensors are NumPy arrays.
    """
    assert not weights[~mask].any()
    weights, kept, drawn = weights[mask], initial[mask], drawn[mask]
    changed = (weights != kept).mean()
    same_signs = (np.sign(weights) == np.sign(kept)).mean()
    action = kind.removeprefix("signed_")
    if action == "reinit":
        assert np.array_equal(np.abs(weights), np.abs(drawn))
        assert changed > 0.99
    elif action == "constant":
        assert np.abs(weights) == pytest.approx(initial.astype(float).std(), rel=1e-5)
    else:
        assert np.array_equal(np.sort(weights), np.sort(kept))
        assert changed > 0.9
    half = pytest.approx(0.5, abs=4 * 0.5 / len(kept) ** 0.5)
    if kind.startswith("signed_"):
        assert same_signs == 1
    else:
        assert same_signs == half
    if kind == "constant":
        assert (weights > 0).mean() == half


@pytest.mark.parametrize("learning", [STILL, {}], ids=["still", "trained"])
@pytest.mark.parametrize("kind", REPLACED)
def test_survivors_become_other_weights_and_the_rest_is_reset(
    kind, learning, small_args, starts, monkeypatch
):
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(prune_type=kind, **learning)
    main.main(args)
    initial = main.new_model(args, 0).state_dict()
    assert same(starts[0][0], initial)
    for round_ in (1, 2):
        state, masks = starts[round_]
        drawn = main.new_model(args, round_).state_dict()
        for name, tensor in state.items():
            if name in masks:
                tensors = (tensor, initial[name], drawn[name], masks[name])
                check_weights(kind, *(tensor.numpy() for tensor in tensors))
            else:
                assert torch.equal(tensor, initial[name]), name
    for name, mask in starts[2][1].items():
        (first, _), (second, _) = starts[1:]
        if kind != "signed_constant":
            assert (first[name] != second[name])[mask].double().mean() > 0.4, "drawn only once"


@pytest.mark.parametrize("kind", ["shuffle", "constant", "signed_reinit", "signed_shuffle"])
def test_draws_depend_on_the_seed_and_the_round(kind, small_args):
    found = []
    for seed, round_ in ((0, 0), (0, 0), (1, 0), (0, 1)):
        args = small_args(prune_type=kind, seed=seed)
        state = main.new_state(args, main.new_model(small_args(), 0))  # always the same weights
        state.round = round_
        main.reset(args, state, state.masks)
        found.append(state.model[5].weight)
    first, again, *others = found
    assert torch.equal(first, again)
    for other in others:
        assert (first != other).double().mean() > 0.4


@pytest.mark.parametrize("learning", [STILL, {"lr_milestones": "30"}], ids=["still", "trained"])
@pytest.mark.parametrize("kind", KEPT)
def test_trained_networks_are_kept(kind, learning, small_args, starts, monkeypatch):
    """Weights, biases and all that batch norm holds, at the end of the round."""
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(prune_type=kind, **learning)
    main.main(args)
    initial = main.new_model(args, 0).state_dict()
    for round_ in (1, 2):
        state, masks = starts[round_]
        final = ticket(args, round_ - 1)["final"]
        for name, tensor in state.items():
            assert torch.equal(tensor, final[name] * masks.get(name, 1)), name
            if name in masks and learning is STILL:
                expected = initial[name] * masks[name]
                assert tensor.numpy() == pytest.approx(expected.numpy(), abs=1e-8)
        assert state["1.num_batches_tracked"] == 40 * round_
        assert not torch.equal(state["1.running_mean"], initial["1.running_mean"])


SCHEDULE = {"lr": 0.02, "lr_milestones": "15,25", "lr_gamma": 0.2, "warmup_iter": 10}


def scheduled(iteration):
    warmup = min(1, (iteration + 1) / 10)
    return 0.02 * (warmup if iteration < 15 else 0.2 if iteration < 25 else 0.04)


@pytest.mark.parametrize("kind", main.PRUNE_TYPES)
def test_every_round_has_the_whole_schedule_but_finetune_only_its_end(
    kind, small_args, starts, monkeypatch
):
    """The weights have the same bits as with torch.optim's class, which starts afresh."""
    monkeypatch.setattr(archs, "build", small_network)
    args = small_args(prune_type=kind, **SCHEDULE)
    main.main(args)

    def rate(round_, iteration):
        last_only = kind == "finetune" and round_ > 0
        return 0.02 * 0.2**2 if last_only else scheduled(iteration)

    check_training(args, starts, partial(torch.optim.Adam, fused=True), range(40), rate)


def test_finetune_after_a_warmup_has_its_last_rate(small_args):
    args = small_args(prune_type="finetune", warmup_iter=10)
    assert main.learning_rate(args, 0, 0, 40) == pytest.approx(1.2e-4)
    assert {main.learning_rate(args, 1, iteration, 40) for iteration in range(40)} == {1.2e-3}


@pytest.mark.parametrize("kind", [kind for kind in main.PRUNE_TYPES if kind != "lt"])
def test_every_other_prune_type_may_have_the_masks_of_lt(kind, small_args, starts):
    flags = {"lr_milestones": "15", "end_iter": 1}
    main.main(small_args(**flags))
    lt = [masks for _, masks in starts]
    starts.clear()
    main.main(small_args(prune_type=kind, masks_from="lt", **flags))
    found = [masks for _, masks in starts]
    assert same(found, lt) == (kind != "random")
    for before, after in itertools.pairwise(found):
        for name in before:
            assert not (after[name] & ~before[name]).any()
            n = int(before[name].sum())
            assert int(after[name].sum()) == n - round(0.2 * n)


@pytest.mark.parametrize("kind", [*REPLACED, *KEPT])
def test_trials_and_resuming_give_the_same_bytes(kind, small_args, tmp_path):
    flags = {"prune_type": kind, "lr_milestones": "30"}
    runs = [small_args(**flags, trials=2), small_args(**flags, trials=2, output_dir=tmp_path / "b")]
    main.main(runs[0])
    main.main(small_args(**flags, output_dir=tmp_path / "b", prune_iterations=1))
    main.main(small_args(**flags, output_dir=tmp_path / "b", prune_iterations=2))
    main.main(runs[1])
    one, other = map(arrays, runs)
    assert one == other
    assert one != arrays(small_args(**flags, seed=1))


# Prune types of one's own


def add_prune_type(reset, monkeypatch):
    table = main.PRUNE_TYPES | {"mine": main.PruneType("mine", reset)}
    monkeypatch.setattr(main, "PRUNE_TYPES", table)


def test_a_reset_that_returns_something_is_refused_before_training(small_args, monkeypatch):
    """Nothing would use what it returns, so that the trained weights would be kept."""
    add_prune_type(lambda args, state: {"1.weight": torch.zeros(300, 784)}, monkeypatch)
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match="--prune_type=mine returns something"):
        main.main(small_args(prune_type="mine"))


def test_a_reset_that_replaces_the_network_is_refused_before_training(small_args, monkeypatch):
    def reset(args, state):
        state.model = main.new_model(args, state.round)

    add_prune_type(reset, monkeypatch)
    monkeypatch.setattr(main, "train", None)
    with pytest.raises(utils.BadInput, match=r"--prune_type=mine returns something or replaces"):
        main.main(small_args(prune_type="mine"))


@pytest.mark.parametrize("shared", [False, True])
def test_a_reset_cannot_change_initial_weights_or_masks(shared, small_args, starts, monkeypatch):
    """Neither at once, nor by a network that shares their memory while it trains."""

    def reset(args, state):
        for name, weight in main.prunable(state.model).items():
            state.initial[name].add_(1)
            state.masks[name].fill_(True)
            if shared:
                weight.data = state.initial[name]
            else:
                weight.copy_(state.initial[name])

    add_prune_type(reset, monkeypatch)
    args = small_args(prune_type="mine")
    main.main(args)
    initial = main.new_model(args, 0).state_dict()
    saved = torch.load(utils.Files(args).checkpoint, weights_only=True)["state"]["initial"]
    assert same(saved, initial)
    for round_, (state, masks) in enumerate(starts):
        for name, mask in masks.items():
            assert torch.equal(state[name], (initial[name] + (round_ > 0)) * mask)
            assert mask.double().mean() == pytest.approx(0.8**round_, abs=1e-3)


def test_a_reset_draws_the_same_after_resuming_and_has_gradients_only_for_initialize(
    small_args, starts, tmp_path, monkeypatch
):
    modes = []

    def initialize(model):
        modes.append(torch.is_grad_enabled())
        main.glorot(model)

    def reset(args, state):
        modes.append(torch.is_grad_enabled())
        main.reinit(args, state)
        state.model[5].weight.copy_(torch.rand(10, 100))

    monkeypatch.setattr(archs, "initializer", lambda *_: initialize)
    main.main(small_args())
    assert modes
    assert all(modes)
    modes.clear()
    starts.clear()
    add_prune_type(reset, monkeypatch)
    main.main(small_args(prune_type="mine"))
    assert modes.count(False) == 3  # the rehearsal and two resets
    for rounds in (2, 3):
        torch.rand(rounds)
        main.main(small_args(prune_type="mine", prune_iterations=rounds, output_dir=tmp_path))
    assert same([*map(list, starts[:3])], [*map(list, starts[3:])])


# The untrained ticket


@pytest.mark.parametrize("kind", ["lt", "reinit", "signed_constant", "lr_rewind"])
def test_every_round_begins_with_an_evaluation_of_its_ticket(kind, small_args, starts, monkeypatch):
    args = small_args(prune_type=kind)
    main.main(args)
    data = trial_data(args)
    model = archs.build("digits", "fc1")
    untrained = np.load(utils.Files(args).array("untrained"))
    assert len(untrained) == 3
    for round_, (state, _) in enumerate(starts):
        model.load_state_dict(state)
        loss, accuracy = main.evaluate(args, model, data, data.val)
        _, test_accuracy = main.evaluate(args, model, data, data.test)
        (row,) = [
            row for row in log_rows(args) if row["round"] == round_ and "train_loss" not in row
        ]
        assert (row["epoch"], row["iteration"]) == (0, 0)
        assert (row["val_loss"], row["val_accuracy"]) == (loss, accuracy)
        assert row["test_accuracy"] == untrained[round_] == test_accuracy


@pytest.mark.parametrize(("rewind_iter", "epoch"), [(20, 1), (33, 2)])
def test_rewound_rounds_begin_with_an_evaluation_at_k(rewind_iter, epoch, small_args, starts):
    args = small_args(rewind_iter=rewind_iter)
    main.main(args)
    data = trial_data(args)
    untrained = np.load(utils.Files(args).array("untrained"))
    begun = [row for row in log_rows(args) if "train_loss" not in row]
    places = [(row["epoch"], row["iteration"]) for row in begun]
    assert places == [(0, 0), (epoch, rewind_iter), (epoch, rewind_iter)]
    model = archs.build("digits", "fc1")
    for round_, (state, _) in enumerate(starts):
        model.load_state_dict(state)
        assert untrained[round_] == main.evaluate(args, model, data, data.test)[1]
    curve = np.load(utils.Files(args).array("all_accuracy_1"))
    assert np.isnan(curve).tolist() == [True, False], "it is not that of an epoch of this round"


def test_the_untrained_ticket_is_not_a_candidate(small_args, monkeypatch):
    """Here it is best by validation loss and accuracy."""
    before = iter([True, *[False] * 3, True, *[False] * 3])
    evaluated = []

    def fake(args, model, data, examples):
        if examples is data.train:
            return 1.0, 12.5
        if examples is data.val:
            evaluated.append(next(before))
            return (0.1, 99.0) if evaluated[-1] else (0.5, 40.0 + len(evaluated))
        if not evaluated:
            return 1.0, 0.0  # in the check before training
        return 1.0, 90.0 if evaluated[-1] else 30.0 + len(evaluated)

    monkeypatch.setattr(main, "evaluate", fake)
    args = small_args(prune_iterations=2, end_iter=3)
    main.main(args)
    expected = {
        "untrained": [90, 90],
        "bestaccuracy": [34, 38],
        "finalaccuracy": [34, 38],
        "earlystop": [20, 20],
        "earlystopaccuracy": [32, 36],
        "trainaccuracy": [12.5, 12.5],
    }
    for name, values in expected.items():
        assert np.load(utils.Files(args).array(name)).tolist() == values, name


@pytest.mark.parametrize("iteration", [1, 20, 40])
def test_the_untrained_ticket_is_evaluated_once_even_if_the_run_resumes(
    iteration, small_args, tmp_path, monkeypatch
):
    args = small_args()
    main.main(args)
    whole = log_rows(args)

    args = small_args(output_dir=tmp_path / "b")
    main.main(small_args(output_dir=tmp_path / "b", prune_iterations=1))
    step = utils.Log.step

    def stop(log):
        step(log)
        if log.state.iteration == iteration:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(utils.Stopped):
        patch.setattr(utils.Log, "step", stop)
        main.main(args)
    main.main(args)
    resumed = log_rows(args)
    assert [row | {"seconds": 0} for row in resumed] == [row | {"seconds": 0} for row in whole]


# Training accuracy


def test_training_accuracy_is_that_of_the_last_network_on_all_training_examples(small_args):
    args = small_args(prune_iterations=2, end_iter=3, augment=True)
    main.main(args)
    data = trial_data(args)
    accuracies = np.load(utils.Files(args).array("trainaccuracy"))
    model = archs.build("digits", "fc1")
    images, labels = data.train
    for round_ in range(2):
        model.load_state_dict(ticket(args, round_)["final"])
        hits = model(data.normalize(images)).argmax(1) == labels
        assert accuracies[round_] == pytest.approx(100 * hits.double().mean().item())
        rows = [row for row in log_rows(args) if row["round"] == round_]
        assert [row.get("train_accuracy") for row in rows] == [None] * 3 + [accuracies[round_]]
