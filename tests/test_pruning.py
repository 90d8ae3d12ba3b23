"""Pruning: exact counts, lowest scores first, nested masks, for any scores."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import main

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
@given(networks(), percents, st.sampled_from(["layer", "global"]))
def test_exactly_the_lowest_share_of_survivors_is_pruned(network, percent, scope):
    scores, masks = network
    before = {name: mask.clone() for name, mask in masks.items()}
    after = main.prune(scores, masks, percent, scope)

    groups = [[name] for name in masks] if scope == "layer" else [list(masks)]
    for group in groups:
        old, new, score = (
            together({name: source[name] for name in group}) for source in (masks, after, scores)
        )
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
