"""Pruning: exact counts, lowest scores first, nested masks, for any scores; densities of layers."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import archs
import main
import utils

percents = st.floats(0.1, 99.9, allow_subnormal=False)
# Few distinct values of both signs, so that ties and zeros are common.
values = st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0]) | st.floats(
    -10, 10, width=32, allow_subnormal=False
)


@st.composite
def networks(draw):
    """Draw scores of one to four layers, and masks, which may be empty."""
    scores, masks = {}, {}
    for index in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 40))
        scores[f"{index}.weight"] = torch.tensor(
            draw(st.lists(values, min_size=size, max_size=size))
        ).view(1, -1)
        masks[f"{index}.weight"] = torch.tensor(
            draw(st.lists(st.booleans(), min_size=size, max_size=size))
        ).view(1, -1)
    return scores, masks


def together(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@settings(deadline=None)
@given(networks(), percents, st.sampled_from(["layer", "global", "erk"]))
def test_exactly_the_lowest_share_of_survivors_is_pruned(network, percent, scope):
    scores, masks = network
    before = {name: mask.clone() for name, mask in masks.items()}
    after = main.prune(scores, masks, percent, scope)

    groups = [list(masks)] if scope == "global" else [[name] for name in masks]
    if scope != "layer":
        n = int(together(masks).sum())
        assert together(after).sum() == n - round(percent / 100 * n)
    for group in groups:
        old, new, score = (
            together({name: source[name] for name in group}) for source in (masks, after, scores)
        )
        if scope == "layer":
            assert new.sum() == old.sum() - round(percent / 100 * int(old.sum()))
        assert not (new & ~old).any(), "a pruned weight was revived"
        removed = old & ~new
        if removed.any() and new.any():
            assert score[removed].max() <= score[new].min()
    for name in masks:
        assert after[name].dtype == torch.bool
        assert after[name].shape == scores[name].shape
        assert torch.equal(masks[name], before[name]), "the masks passed in were changed"


def test_ties_are_pruned_by_count():
    weights = {"a": torch.full((10, 10), 0.3)}
    masks = main.prune(weights, {"a": torch.ones(10, 10, dtype=torch.bool)}, 10.0)
    assert masks["a"].sum() == 90


def test_surviving_zeros_are_pruned_first_and_pruned_zeros_do_not_count():
    weights = {"a": torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0])}
    masks = {"a": torch.tensor([False, False, True, True, True, True])}
    assert main.prune(weights, masks, 25.0)["a"].tolist() == [False, False, False, True, True, True]


def test_global_scope_compares_layers():
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0])}
    masks = {name: torch.ones(2, dtype=torch.bool) for name in weights}
    pruned = main.prune(weights, masks, 50.0, "global")
    assert [mask.tolist() for mask in pruned.values()] == [[False, False], [True, True]]
    pruned = main.prune(weights, masks, 50.0, "layer")
    assert [mask.tolist() for mask in pruned.values()] == [[False, True], [False, True]]


def test_layers_have_their_own_rates():
    weights = {"a": torch.arange(1.0, 11), "b": torch.arange(1.0, 11)}
    masks = {name: torch.ones(10, dtype=torch.bool) for name in weights}
    for scope in ("layer", "global"):
        pruned = main.prune(weights, masks, {"a": 20, "b": 0}, scope)
        assert [int(mask.sum()) for mask in pruned.values()] == [8, 10]


def test_under_global_scope_rates_set_the_count_and_magnitudes_decide():
    """20% of 10 and 10% of 50 are 7; the second layer has 6 of the 7 smallest weights."""
    weights = {"a": torch.arange(1.0, 11) * 6.5, "b": torch.arange(1.0, 51)}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    pruned = main.prune(weights, masks, {"a": 20, "b": 10}, "global")
    assert [int(mask.sum()) for mask in pruned.values()] == [9, 44]
    pruned = main.prune(weights, masks, {"a": 20, "b": 10}, "layer")
    assert [int(mask.sum()) for mask in pruned.values()] == [8, 45]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_all_weights_can_be_pruned(scope):
    weights = {"a": torch.randn(3), "b": torch.randn(2)}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for _ in range(3):
        masks = main.prune(weights, masks, 99.9, scope)
    assert not any(mask.any() for mask in masks.values())


# How many weights each layer keeps


@pytest.fixture
def scopes(monkeypatch):
    """A copy of the table of scopes, which a test may add to."""
    monkeypatch.setattr(main, "SCOPES", dict(main.SCOPES))
    return main.SCOPES


def dense(model):
    """Return masks that keep everything; without tensors of that size."""
    return {
        name: torch.ones((), dtype=torch.bool).expand(weight.shape)
        for name, weight in main.prunable(model).items()
    }


def erk_densities(shapes, density):
    """Return the densities of layers by the definition, {name: share}, in the plainest way.

    As in google-research/rigl, one layer at a time becomes dense.
    """
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    p = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    full = set()
    while True:
        others = [name for name in shapes if name not in full]
        epsilon = sum(density * sizes[name] for name in others)
        epsilon -= sum((1 - density) * sizes[name] for name in full)
        epsilon /= sum(p[name] * sizes[name] for name in others)
        largest = max(others, key=p.get)
        if epsilon * p[largest] <= 1:
            return {name: 1.0 if name in full else epsilon * p[name] for name in shapes}
        full.add(largest)


@pytest.mark.parametrize("percent", [20, 5, 1])
@pytest.mark.parametrize(
    ("dataset", "arch_type"), [("mnist", "fc1"), ("cifar10", "conv6"), ("cifar10", "vgg19")]
)
def test_erk_densities_of_the_papers_networks(dataset, arch_type, percent):
    model = archs.build(dataset, arch_type)
    shapes = {name: tuple(weight.shape) for name, weight in main.prunable(model).items()}
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    percents = dict.fromkeys(shapes, 100 - percent)
    counts = main.erk_scope(None, dense(model), percents)

    expected = erk_densities(shapes, percent / 100)
    total = sum(sizes.values())
    assert sum(counts.values()) == total - round((100 - percent) / 100 * total)
    for name, size in sizes.items():
        assert abs(counts[name] - expected[name] * size) < 1
    if (arch_type, percent) == ("vgg19", 20):
        assert list(expected.values()).count(1) == 4


def test_erk_by_hand():
    """Shapes (4, 2), (4, 4), (2, 4) have the shares 6, 8 and 6 of what is left."""
    shapes = {"a": (4, 2), "b": (4, 4), "c": (2, 4)}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    # Of 32 weights, 20 remain.
    assert main.erk_scope(None, masks, dict.fromkeys(masks, 37.5)) == {"a": 6, "b": 8, "c": 6}
    # 30 would be 9, 12, 9, so a and c stay dense, and b gets 14.
    assert main.erk_scope(None, masks, dict.fromkeys(masks, 6.25)) == {"a": 8, "b": 14, "c": 8}
    # 10 would be 3, 4, 3, but a has only 2 left. The others share 8, which is 4.57 and 3.43.
    masks["a"] = torch.zeros(4, 2, dtype=torch.bool)
    masks["a"].view(-1)[:2] = True
    assert main.erk_scope(None, masks, dict.fromkeys(masks, 100 * 16 / 26)) == {
        "a": 2,
        "b": 5,
        "c": 3,
    }
    # Two rates: 24 and 8 weights lose 25% and 50%, so 22 remain. A rate of 0 leaves a layer out.
    masks["a"] = torch.ones(4, 2, dtype=torch.bool)
    assert main.erk_scope(None, masks, {"a": 50, "b": 25, "c": 25}) == {"a": 7, "b": 9, "c": 6}
    del masks["c"]
    assert main.erk_scope(None, masks, {"a": 50, "b": 50}) == {"a": 5, "b": 7}


@settings(deadline=None)
@given(networks(), st.lists(percents, min_size=1, max_size=4))
def test_erk_shares_what_is_left_in_proportion_in_every_round(network, rates):
    """Except for layers that would keep more than their survivors, which keep them all."""
    scores, masks = network
    shares = {name: sum(mask.shape) for name, mask in masks.items()}
    for percent in rates:
        counts = main.erk_scope(scores, masks, dict.fromkeys(masks, percent))
        survivors = {name: int(mask.sum()) for name, mask in masks.items()}
        assert counts.keys() == masks.keys()
        smaller = [name for name in masks if counts[name] < survivors[name]]
        # One scale fits all layers, up to rounding.
        low = max(((counts[name] - 1) / shares[name] for name in smaller), default=0)
        high = min(((counts[name] + 1) / shares[name] for name in smaller), default=float("inf"))
        assert low < high
        for name in masks.keys() - smaller:
            assert (survivors[name] - 1) / shares[name] < high
        masks = main.prune(scores, masks, percent, "erk")


@pytest.mark.parametrize("names", [("b",), ("a", "a"), ("a", ("a",)), ("a", "frozen")])
def test_a_scope_names_each_layer_once(names, scopes):
    scopes["wrong"] = lambda scores, masks, percents: dict.fromkeys(names, 1)
    scopes["together"] = lambda scores, masks, percents: {names: 1}
    masks = {name: torch.ones(2) > 0 for name in ("a", "frozen")}
    percents = {"a": 50, "frozen": 0}
    scope = "together" if names == ("a", "a") else "wrong"
    with pytest.raises(utils.Failure, match=r"names (a|b|frozen) twice, or it is no layer that"):
        main.prune({name: torch.rand(2) for name in masks}, masks, percents, scope)


@pytest.mark.parametrize("count", [2, 2.0, np.int64(2), torch.tensor(2)])
def test_any_whole_number_is_a_count(count, scopes):
    scopes["two"] = lambda scores, masks, percents: {"a": count}
    pruned = main.prune({"a": torch.arange(4.0)}, {"a": torch.ones(4) > 0}, 50, "two")
    assert pruned["a"].tolist() == [False, False, True, True]


def test_different_rates_set_the_total_of_erk_as_of_global():
    shapes = {"a": (30, 7), "b": (11, 13), "c": (5, 30)}
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    scores = {name: torch.rand(shape) for name, shape in shapes.items()}
    rates = {"a": 31.0, "b": 17.0, "c": 0.0}
    for _ in range(5):
        left = [main.prune(scores, masks, rates, scope) for scope in ("global", "erk")]
        assert together(left[0]).sum() == together(left[1]).sum() < together(masks).sum()
        assert left[1]["c"].all()
        masks = left[1]


def test_layers_that_a_scope_leaves_out_stay_as_they_are(scopes):
    scopes["first"] = lambda scores, masks, percents: {"a": 1}
    masks = {name: torch.tensor([True, True, False]) for name in "ab"}
    before = copy.deepcopy(masks)
    pruned = main.prune({name: torch.arange(3.0) for name in "ab"}, masks, 50, "first")
    assert pruned["a"].tolist() == [False, True, False]
    assert torch.equal(pruned["b"], before["b"])


@pytest.mark.parametrize("count", [-1, 3, 0.5])
def test_impossible_counts_of_a_scope_are_refused(count, scopes):
    scopes["wrong"] = lambda scores, masks, percents: {("a", "b"): count}
    masks = {name: torch.tensor([True, False]) for name in "ab"}
    scores = {name: torch.arange(2.0) for name in "ab"}
    message = f"--prune_scope=wrong: its function keeps {count} of the 2 survivors of a, b"
    with pytest.raises(utils.Failure, match=message):
        main.prune(scores, masks, 50, "wrong")
