"""Linear layers that compute only with their survivors: the same numbers as dense ones."""

import ast
import copy
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import archs
import main
import utils
from archs.sparse import (
    SparseLinear,
    SparseProduct,
    WeightRead,
    densify,
    layers_below,
    sparsify,
)
from conftest import arrays, finished_rounds, losses_of, same, small_data, ticket, trial_data


def pair(mask, bias=True, dtype=torch.float64, contiguous=True):
    """Return an nn.Linear with these survivors and its copy as a SparseLinear."""
    rows, columns = mask.shape
    torch.manual_seed(0)
    dense = nn.Linear(columns, rows, bias, dtype=dtype)
    with torch.no_grad():
        dense.weight.mul_(mask)
    return dense, made_sparse(copy.deepcopy(dense), mask, contiguous)


def made_sparse(linear, mask, contiguous=True):
    """Make an nn.Linear a SparseLinear, even if all weights survive, and return it."""
    sparsify(nn.Sequential(linear), {"0.weight": mask}, below=math.inf, contiguous=contiguous)
    assert type(linear) is SparseLinear
    return linear


@st.composite
def masks(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    size = rows * columns
    alive = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return torch.tensor(alive).view(rows, columns)


EMPTY = torch.tensor(
    [[False, False, False, False], [True, False, False, True], [False, False, True, True]]
)


def gradients(layer, x, mask):
    """Return the output for x, and the gradients of x, of the survivors and of the bias."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.square().sum().backward()
    weight = layer.weight.grad[mask] if type(layer) is nn.Linear else layer.values.grad
    return [y.detach(), x.grad, weight, *([] if layer.bias is None else [layer.bias.grad])]


@settings(deadline=None)
@given(masks(), st.booleans(), st.sampled_from([(), (1,), (5,), (2, 3), (0,)]), st.booleans())
def test_outputs_and_gradients_are_those_of_the_dense_layer(mask, bias, shape, contiguous):
    dense, sparse = pair(mask, bias, contiguous=contiguous)
    x = torch.randn(*shape, mask.shape[1], dtype=torch.float64)
    for _ in range(3):  # after updates, too
        expected = gradients(dense, x, mask)
        found = gradients(sparse, x, mask)
        assert found[0].is_contiguous() or not contiguous
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            dense.weight -= 0.1 * dense.weight.grad * mask
            sparse.values.sub_(0.1 * sparse.values.grad)
            if bias:
                dense.bias -= 0.1 * dense.bias.grad
                sparse.bias -= 0.1 * sparse.bias.grad


@pytest.mark.parametrize("contiguous", [True, False])
def test_large_inputs_are_divided(contiguous, monkeypatch):
    dense, sparse = pair(EMPTY, contiguous=contiguous)
    x = torch.randn(9, 4, dtype=torch.float64)
    sizes = []
    product = torch.addmm

    def spy(bias, matrix, inputs, out):
        sizes.append(inputs.numel())
        return product(bias, matrix, inputs, out=out)

    monkeypatch.setattr(torch, "addmm", spy)
    for cached, expected in ((40, [36]), (8, [8, 8, 8, 8, 4]), (1, [4] * 9)):
        monkeypatch.setattr("archs.sparse.CACHED", cached)
        sizes.clear()
        found = gradients(sparse, x, EMPTY)
        assert sizes == expected
        assert found[0].is_contiguous() or not contiguous
        torch.testing.assert_close(found, gradients(dense, x, EMPTY), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", [EMPTY, EMPTY.t(), torch.zeros(3, 4, dtype=torch.bool)])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_columns_and_layers_may_be_empty(mask, bias):
    dense, sparse = pair(mask, bias)
    assert len(sparse.values) == mask.sum()
    x = torch.randn(5, mask.shape[1], dtype=torch.float64)
    for found, expected in zip(gradients(sparse, x, mask), gradients(dense, x, mask), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_autograd_agrees_with_finite_differences():
    _, sparse = pair(EMPTY)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: sparse(x), (x, sparse.values, sparse.bias))


def test_frozen_inputs_values_and_biases_get_no_gradient():
    dense, _ = pair(EMPTY)
    dense.weight.requires_grad = False
    sparse = made_sparse(dense, EMPTY)
    y = sparse(torch.randn(5, 4, dtype=torch.float64))
    y.sum().backward()
    assert sparse.values.grad is None
    assert sparse.bias.grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_is_that_of_the_dense_layer(bias):
    dense, sparse = pair(EMPTY, bias)
    found = sparse.state_dict()
    expected = dense.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(tensor.requires_grad for tensor in found.values())

    with torch.no_grad():
        dense.weight.copy_(torch.arange(1, 13).view(3, 4) * EMPTY)
        if bias:
            dense.bias.fill_(7)
    sparse.load_state_dict(dense.state_dict())
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))
    assert sparse.values.tolist() == [5, 8, 11, 12]
    fresh = nn.Linear(4, 3, bias, dtype=torch.float64)
    fresh.load_state_dict(sparse.state_dict())
    assert torch.equal(fresh.weight, dense.weight)


def test_a_state_dict_that_does_not_fit_is_refused():
    dense, sparse = pair(EMPTY)
    good = dense.state_dict()
    nonzero = good | {"weight": good["weight"] + 1e-9}
    with pytest.raises(RuntimeError, match="weight is not zero where this layer is pruned"):
        sparse.load_state_dict(nonzero)
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        sparse.load_state_dict(good | {"weight": torch.zeros(4, 3)})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "weight"'):
        sparse.load_state_dict({"bias": good["bias"]})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "values"'):
        sparse.load_state_dict(good | {"values": torch.zeros(4)})


def test_a_copy_is_independent():
    dense, sparse = pair(EMPTY)
    other = copy.deepcopy(sparse)
    with torch.no_grad():
        sparse.values.zero_()
        sparse.bias.zero_()
    assert same(dict(other.state_dict()), dict(dense.state_dict()))


def test_whoever_needs_the_dense_weight_notices_that_it_is_not_there():
    linear = nn.Linear(4, 3)
    weight = linear.weight
    made_sparse(linear, EMPTY)
    with pytest.raises(WeightRead, match="the weight of a sparse layer is read"):
        linear.weight.data.clamp_(0, 1)
    with pytest.raises(WeightRead):
        getattr(linear, "weight", None)
    assert weight.isnan().all()


@pytest.mark.parametrize("contiguous", [True, False])
def test_outputs_can_be_changed_in_place(contiguous):
    dense, sparse = pair(EMPTY, contiguous=contiguous)
    x = torch.randn(5, 4, dtype=torch.float64)
    grads = []
    for layer in (dense, sparse):
        y = F.relu(layer(x).mul_(2), inplace=True)
        y.square().sum().backward()
        grads.append(layer.bias.grad)
    torch.testing.assert_close(*grads)


def test_the_layer_needs_only_torch():
    modules = set()
    for node in ast.walk(ast.parse(Path(archs.sparse.__file__).read_text())):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
    assert {name.partition(".")[0] for name in modules} - sys.stdlib_module_names == {"torch"}


class Network(nn.Module):
    """A network with all kinds of linear layers."""

    def __init__(self):
        super().__init__()
        self.at_the_limit = nn.Linear(10, 4)
        self.below_it = nn.Linear(10, 4, bias=False)
        self.unlisted = nn.Linear(10, 4)
        self.twice = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.again = self.twice[0]
        self.one = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.attention = nn.MultiheadAttention(4, 1)
        self.convolution = nn.Conv2d(1, 1, 3)
        self.hooked = nn.Linear(4, 4)
        self.hooked.weight.register_hook(lambda gradient: 2 * gradient)
        self.hooked_later = nn.Linear(4, 4)
        self.hooked_later.weight.register_post_accumulate_grad_hook(lambda _: None)
        self.own_forward = nn.Linear(4, 4)
        self.own_forward.forward = lambda x: x

    def forward(self, x):
        x = self.at_the_limit(x) + self.below_it(x) + self.unlisted(x)
        x = self.hooked(self.hooked_later(self.own_forward(x)))
        x = self.other(self.one(self.again(self.twice(x))))
        return self.attention(x, x, x)[0]


def network():
    """Return a Network of which a fifth of the weights or less survives, and the masks."""
    torch.manual_seed(0)
    model = Network()
    masks = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and not name.startswith("unlisted"):
            mask = torch.zeros_like(parameter, dtype=torch.bool).flatten()
            mask[::5] = True
            masks[name] = mask.view_as(parameter)
            parameter.data *= masks[name]
    masks["below_it.weight"][0, 0] = False
    model.below_it.weight.data *= masks["below_it.weight"]
    return model, masks


def test_only_plain_layers_below_the_limit_become_sparse_wherever_they_are():
    model, masks = network()
    expected = network()[0]
    assert set(layers_below(model, masks, below=30)) == {"at_the_limit", "below_it", "twice.0"}
    sparsify(model, masks, below=30)
    sparse = {
        name
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, SparseLinear)
    }
    assert sparse == {"at_the_limit", "below_it", "twice.0", "again"}
    assert model.again is model.twice[0]
    assert list(dict(model.named_parameters())) == list(dict(expected.named_parameters()))
    assert list(model.state_dict()) == list(expected.state_dict())
    x = torch.randn(3, 10)
    torch.testing.assert_close(model(x), expected(x))


def test_the_limit_itself_is_dense():
    model, masks = network()
    sparsify(model, masks, below=20)
    assert type(model.at_the_limit) is nn.Linear
    assert type(model.below_it) is SparseLinear


def test_dense_again_it_is_the_same_network():
    model, masks = network()
    expected, _ = network()
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    pointers = [parameter.data_ptr() for parameter in parameters.values()]
    model.below_it.weight.requires_grad = False
    sparsify(model, masks, below=100)
    assert str(model) != str(expected)
    densify(model)
    assert str(model) == str(expected)
    assert vars(model.below_it).keys() == vars(expected.below_it).keys()
    assert same(dict(model.state_dict()), dict(expected.state_dict()))
    assert modules == dict(model.named_modules())
    assert list(parameters) == [name for name, _ in model.named_parameters()]
    for parameter, again in zip(parameters.values(), model.parameters(), strict=True):
        assert parameter is again
    assert pointers == [parameter.data_ptr() for parameter in model.parameters()]
    assert model.again.weight.requires_grad
    assert not model.below_it.weight.requires_grad


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_training_is_that_of_a_masked_dense_network(optimizer):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)).double()
    masks = {f"{i}.weight": torch.rand_like(dense[i].weight) < 0.1 for i in (0, 2)}
    weights = dict(dense.named_parameters())
    for name, mask in masks.items():
        weights[name].data *= mask
    sparse = copy.deepcopy(dense)
    sparsify(sparse, masks, below=20)
    assert sum(parameter.numel() for parameter in sparse.parameters()) == 25 + sum(
        int(mask.sum()) for mask in masks.values()
    )
    x = torch.randn(50, 30, dtype=torch.float64)
    y = torch.randint(5, (50,))
    losses = []
    for model in (dense, sparse):
        update = optimizer(model.parameters(), lr=0.01, weight_decay=0.1)
        losses.append([])
        for _ in range(20):
            update.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            update.step()
            for name, mask in masks.items():
                if model is dense:
                    weights[name].data *= mask
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    assert losses[0][-1] < losses[0][0]


# ---- In a run ------------------------------------------------------------------------------------


@pytest.fixture
def in_double(monkeypatch):
    """Make networks and images double-precision."""
    normalize = main.Data.normalize
    monkeypatch.setattr(main.Data, "normalize", lambda *args: normalize(*args).double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def layers(monkeypatch):
    """The names of the layers that become sparse, once for each time."""
    found, make_sparse = [], main.make_sparse

    def spy(args, state, contiguous):
        make_sparse(args, state, contiguous)
        for name, layer in state.model.named_modules():
            if isinstance(layer, SparseLinear):
                found.append(name)

    monkeypatch.setattr(main, "make_sparse", spy)
    return found


@pytest.mark.parametrize(
    ("arch_type", "optimizer", "iterations"),
    [
        ("fc1", "adam", 200),
        ("fc1", "sgd", 200),
        ("lenet5", "adam", 200),
        ("conv2", "sgd", 20),
    ],
)
def test_iterations_give_the_losses_and_the_next_masks_of_dense_layers(
    arch_type, optimizer, iterations, small_args, in_double, layers
):
    """By hand, these networks and alexnet were trained for 200 iterations: docs/speed.md."""
    results = []
    for sparse_below in (0, 20):
        args = small_args(
            arch_type=arch_type,
            optimizer=optimizer,
            lr=0.001 if optimizer == "adam" else 0.01,
            weight_decay=0.001,
            batch_size=8,
            sparse_below=sparse_below,
        )
        state = main.new_state(args, main.new_model(args, 0))
        generator = torch.Generator().manual_seed(1)
        for mask in state.masks.values():
            mask.bernoulli_(0.1, generator=generator)
        with torch.no_grad():
            for weight in main.prunable(state.model).values():
                weight.mul_(3)  # so that activations keep their size
        main.apply_masks(state.model, state.masks)
        utils.restore(state.start, state.model.state_dict())
        step = main.Step(args, state, trial_data(args))
        step.speed_up()
        losses = []
        for _ in range(iterations):
            state.loss.zero_()
            step()
            losses.append(state.loss.item())
        main.make_dense(state)
        weights = main.prunable(state.model)
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        results.append((losses, main.prune(scores, state.masks, 20)))
    assert len(layers) == 3
    (dense_losses, dense_masks), (losses, masks) = results
    assert losses == pytest.approx(dense_losses, rel=1e-8)
    assert same(masks, dense_masks)


def mlp(*_):
    """Return a network with a frozen layer, which mixes the pixels.

    Weights of pixels that are always black would have scores that differ in the last digit only.
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 50).requires_grad_(False),
        nn.Linear(50, 20),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(20, 10),
    )


COSINE = {"lr_schedule": "cosine", "lr_milestones": "none", "label_smoothing": 0.1}
KINDS = {
    **{name: {"prune_type": name} for name in main.PRUNE_TYPES},
    **{name: {"criterion": name} for name in main.CRITERIA},
    "one_shot": {"one_shot": True},
    "augment": {"augment": True},
    "global": {"prune_scope": "global"},
    "rewind": {"rewind_iter": 5, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.5} | COSINE,
    "nesterov": {"optimizer": "sgd", "lr": 0.05, "nesterov": True} | COSINE,
    "to 1%": {"prune_percent": 99},
    "to 1%, global": {"prune_percent": 99, "prune_scope": "global"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_give_the_results_of_dense_layers(
    kind, small_args, in_double, layers, undrawn, tmp_path, monkeypatch
):
    monkeypatch.setattr(archs, "build", mlp)
    flags = {"lr_milestones": 9, "val_size": 360} | KINDS[kind]
    results = []
    for sparse_below in (0, 90):
        args = small_args(output_dir=tmp_path / str(sparse_below), **flags)
        args.sparse_below = sparse_below
        main.main(args)
        assert bool(layers) == bool(sparse_below)
        tickets = [ticket(args, round_) for round_ in range(args.prune_iterations)]
        results.append((losses_of(args), tickets))
    (dense_losses, dense_tickets), (losses, tickets) = results
    assert losses == pytest.approx(dense_losses, rel=1e-8)
    for a, b in zip(tickets, dense_tickets, strict=True):
        assert same(a["masks"], b["masks"])
        for name in ("model", "final"):
            assert list(a[name]) == list(b[name])
            for key, tensor in b[name].items():
                torch.testing.assert_close(a[name][key], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("first", "then"), [(90.0, 0.0), (0.0, 90.0), (90.0, 90.0)])
def test_checkpoints_are_dense_and_the_layers_may_change(
    first, then, small_args, in_double, layers, undrawn, stop_after, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(archs, "build", mlp)
    expected = small_args(output_dir=tmp_path / "undisturbed", sparse_below=0)
    main.main(expected)
    stop_after(55, small_args(sparse_below=first))
    args = small_args(sparse_below=then)
    state = torch.load(utils.Files(args).checkpoint, weights_only=True)["state"]
    assert state["round"] == 1
    assert utils.same_structure(vars(main.new_state(args, main.new_model(args, 0))), state)
    squares = state["optimizer_state"]["square"]
    for name, mask in state["masks"].items():
        assert not state["model"][name][~mask].any()
        assert squares[name][mask].any()
        assert bool(squares[name][~mask].any()) == (first == 0)

    layers.clear()
    main.main(args)
    assert bool(layers) == bool(then)
    assert losses_of(args) == pytest.approx(losses_of(expected), rel=1e-8)
    note = f"resumes with changes: sparse_below {first}, now {then}\n"
    assert (note in capsys.readouterr().err) == (first != then)
    assert json.loads(utils.Files(args).settings.read_text())["sparse_below"] == then


@pytest.mark.parametrize(
    ("flags", "mkl", "expected"),
    [
        ({}, True, main.SPARSE_BELOW),
        ({}, False, 0),
        ({"amp": True}, True, 0),
        ({"sparse_below": 5}, False, 5),
    ],
)
def test_layers_become_sparse_where_it_was_measured(flags, mkl, expected, small_args, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert small_args(**flags).sparse_below == expected


def test_on_a_gpu_all_layers_stay_dense(small_args, monkeypatch):
    found = []
    monkeypatch.setattr(main, "pick_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(utils, "lock", found.extend)
    with pytest.raises(TypeError):  # nothing is locked
        main.main(small_args(sparse_below=90, trials=2))
    assert [run.args.sparse_below for run in found] == [0, 0]


def test_only_dense_layers_are_masked_and_only_survivors_are_updated(small_args):
    args = small_args(sparse_below=50)
    state = main.new_state(args, main.new_model(args, 0))
    state.masks["1.weight"].bernoulli_(0.1)
    main.apply_masks(state.model, state.masks)
    utils.restore(state.start, state.model.state_dict())
    step = main.Step(args, state, trial_data(args))
    step.speed_up()
    shapes = [tuple(weight.shape) for weight, _ in step.masks]
    assert shapes == [(100, 300), (10, 100)]
    survivors = int(state.masks["1.weight"].sum())
    sizes = [survivors, 300, 30000, 100, 1000, 10]
    assert [parameter.numel() for parameter in step.parameters] == sizes
    for name in ("average", "square"):
        assert [tensor.numel() for tensor in step.optimizer_state[name]] == sizes


# ---- Networks of all kinds -----------------------------------------------------------------------


class Own(nn.Module):
    """A network with three linear layers, which subclasses call in their own way."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(784, 50).requires_grad_(False)  # as in mlp
        self.a = nn.Linear(50, 40)
        self.b = nn.Linear(40, 30)
        self.out = nn.Linear(30, 10)

    def forward(self, x):
        return self.out(self.hidden(self.mix(x.flatten(1))))


class InPlace(Own):
    def hidden(self, x):
        return F.relu(self.b(F.relu(self.a(x), inplace=True)), inplace=True)


class Listed(Own):
    def __init__(self):
        super().__init__()
        self.layers = [[self.a], [self.b]]

    def hidden(self, x):
        for (layer,) in self.layers:
            x = layer(x).relu()
        return x


class Closed(Own):
    def __init__(self):
        super().__init__()
        a, b = self.a, self.b
        self.hidden = lambda x: b(a(x).relu()).relu()


class Hooked(Own):
    def __init__(self):
        super().__init__()
        self.a.register_forward_hook(lambda layer, inputs, output: output.relu())
        self.b.register_forward_pre_hook(lambda layer, inputs: inputs[0] + 1)
        self.b.register_full_backward_hook(lambda layer, inputs, outputs: (2 * inputs[0],))

    def hidden(self, x):
        return self.b(self.a(x))


class Twice(Own):
    def __init__(self):
        super().__init__()
        self.again = self.a

    def hidden(self, x):
        return self.b(self.a(x).relu() + self.again(x).tanh()).relu()


class Viewed(Own):
    def hidden(self, x):
        x = self.a(x.unsqueeze(1).repeat(1, 3, 1)).relu()
        return self.b(x.view(3 * len(x), 40)).view(-1, 90)[:, 60:].relu()


class Dropped(Own):
    def hidden(self, x):
        return self.b(F.dropout(self.a(x).relu(), 0.5, self.training)).relu()


class Normed(Own):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(40)

    def hidden(self, x):
        return self.b(self.norm(self.a(x)).relu()).relu()


class Attentive(Own):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)

    def hidden(self, x):
        x = self.a(x).view(-1, 4, 10)
        return self.b(self.attention(x, x, x)[0].flatten(1)).relu()


class Checkpointed(Own):
    def hidden(self, x):
        x = x.detach().requires_grad_()
        return checkpoint(lambda x: self.b(self.a(x).relu()).relu(), x, use_reentrant=False)


class Clamping(Own):
    def hidden(self, x):
        self.a.weight.data.clamp_(-0.1, 0.1)
        return self.b(self.a(x).relu()).relu()


class Holding(Own):
    def __init__(self):
        super().__init__()
        self.weights = [self.b.weight]

    def hidden(self, x):
        return F.linear(self.a(x).relu(), self.weights[0]).relu()


class Encoder(Own):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(10, 2, 30, dropout=0, batch_first=True)

    def hidden(self, x):
        return self.b(self.layer(self.a(x).view(-1, 4, 10)).flatten(1)).relu()


def compare(network, small_args, tmp_path, monkeypatch):
    """Train a network with dense and with sparse layers; return its tickets in the last round."""
    monkeypatch.setattr(archs, "build", lambda *_: network())
    found = []
    for sparse_below in (0, 90):
        args = small_args(output_dir=tmp_path / str(sparse_below), sparse_below=sparse_below)
        main.main(args)
        found.append(ticket(args, 2))
    return found


@pytest.mark.parametrize(
    "network",
    [
        InPlace,
        Listed,
        Closed,
        Hooked,
        Twice,
        Viewed,
        Dropped,
        Normed,
        Attentive,
        Checkpointed,
    ],
)
def test_with_sparse_layers_a_network_of_any_kind_computes_the_same(
    network, small_args, in_double, layers, undrawn, tmp_path, monkeypatch, capsys
):
    dense, sparse = compare(network, small_args, tmp_path, monkeypatch)
    assert {"a", "b", "out"} <= set(layers)
    assert "running without" not in capsys.readouterr().out
    assert same(sparse["masks"], dense["masks"])
    for name, tensor in dense["final"].items():
        torch.testing.assert_close(sparse["final"][name], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (Clamping, "WeightRead: the weight of a sparse layer is read"),
        (Encoder, "WeightRead: the weight of a sparse layer is read"),
        (Holding, "the loss changes by nan%"),
    ],
)
def test_a_network_that_needs_the_dense_weight_stays_dense_and_a_line_says_so(
    network, problem, small_args, undrawn, tmp_path, monkeypatch, capsys
):
    dense, sparse = compare(network, small_args, tmp_path, monkeypatch)
    lines = [line for line in capsys.readouterr().out.splitlines() if "running without" in line]
    assert len(lines) == 2, "of the two rounds in which layers are below the limit"
    for line in lines:
        assert re.fullmatch(f"running without sparse layers: {problem}", line)
    for name in ("final", "model", "masks"):
        assert same(sparse[name], dense[name])


class ReZero(Own):
    """A network with dropout in a branch that counts only after the first iteration."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Linear(40, 40)
        self.factor = nn.Parameter(torch.zeros(1))

    def hidden(self, x):
        x = self.a(x).relu()
        x = x + self.factor * F.dropout(self.branch(x).relu(), 0.5, self.training)
        return self.b(x).relu()


def test_dropout_that_does_not_count_at_first_drops_the_same_units(
    small_args, in_double, layers, undrawn, tmp_path, monkeypatch
):
    dense, sparse = compare(ReZero, small_args, tmp_path, monkeypatch)
    assert "branch" in layers
    for name, tensor in dense["final"].items():
        torch.testing.assert_close(sparse["final"][name], tensor, rtol=1e-8, atol=1e-10)


class ActNorm(Own):
    """A network that reads a weight in its first iteration only."""

    def __init__(self):
        super().__init__()
        self.register_buffer("done", torch.tensor(False))

    def hidden(self, x):
        if self.training and not self.done:
            with torch.no_grad():
                self.a.weight.mul_(1 / self.a(x).std())
                self.done.fill_(True)
        return self.b(self.a(x).relu()).relu()


@pytest.mark.parametrize("network", [ReZero, ActNorm])
def test_a_run_that_resumes_within_a_round_takes_the_same_way_again(
    network, small_args, undrawn, stop_after, tmp_path, monkeypatch
):
    monkeypatch.setattr(archs, "build", lambda *_: network())
    found = []
    for stop in (None, 55):
        args = small_args(output_dir=tmp_path / str(stop), sparse_below=90)
        if stop:
            stop_after(stop, args)
        main.main(args)
        found.append(arrays(args))
    assert found[0] == found[1]


class Penalty(torch.autograd.Function):
    """The identity of the first argument, which adds the second to the loss."""

    @staticmethod
    def forward(ctx, x, penalty):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.ones_like(gradient[0, 0])


class Penalized(Own):
    """A network that penalizes the weights of its dense layers."""

    def hidden(self, x):
        x = self.b(self.a(x).relu()).relu()
        penalty = torch.zeros(())
        for module in self.modules():
            if type(module) is nn.Linear:
                penalty = penalty + 1e-4 * module.weight.abs().sum()
        return Penalty.apply(x, penalty)


def test_a_penalty_that_sparse_layers_would_lose_is_noticed(
    small_args, undrawn, tmp_path, monkeypatch, capsys
):
    dense, sparse = compare(Penalized, small_args, tmp_path, monkeypatch)
    assert capsys.readouterr().out.count("running without sparse layers: the gradient of") == 2
    assert same(sparse["final"], dense["final"])


class Viewing(Own):
    """A network that needs contiguous outputs for large batches only."""

    def hidden(self, x):
        x = self.a(x)
        if len(x) > 300:
            x = x.view(-1).view(len(x), 40)
        return self.b(x.relu()).relu()


def test_an_error_that_sparse_layers_cause_after_the_rehearsal_says_how_to_resume(
    small_args, undrawn, monkeypatch
):
    monkeypatch.setattr(archs, "build", lambda *_: Viewing())
    with pytest.raises(utils.Failure, match=r"with sparse layers, RuntimeError: .*sparse_below=0"):
        main.main(small_args(sparse_below=90))
    args = small_args(sparse_below=0)
    main.main(args)
    assert finished_rounds(args) == 3


def test_without_sparse_layers_an_error_of_the_network_keeps_its_traceback(
    small_args, undrawn, monkeypatch
):
    class Failing(Own):
        calls = 0

        def hidden(self, x):
            self.calls += 1
            if self.calls > 10:
                raise RuntimeError("of the user")
            return self.b(self.a(x))

    monkeypatch.setattr(archs, "build", lambda *_: Failing())
    with pytest.raises(RuntimeError, match="of the user"):
        main.main(small_args(sparse_below=90))


def test_an_error_before_a_trial_has_a_state_is_raised_as_it_is(small_args, monkeypatch):
    def fail(*_):
        raise RuntimeError("of the device")

    monkeypatch.setattr(main, "hold_out", fail)
    with pytest.raises(RuntimeError, match="of the device"):
        main.main(small_args())


class ClampingLate(Own):
    """A network that reads a weight only after the rehearsal and some iterations."""

    calls = 0

    def hidden(self, x):
        self.calls += self.training
        if self.calls > 110:
            self.a.weight.data.clamp_(-9, 9)
        return self.b(self.a(x).relu()).relu()


def test_a_weight_that_is_read_late_ends_the_run_which_resumes_without_sparse_layers(
    small_args, undrawn, monkeypatch
):
    monkeypatch.setattr(archs, "build", lambda *_: ClampingLate())
    message = (
        "with sparse layers, WeightRead: the weight .* is read. To resume, add --sparse_below=0"
    )
    with pytest.raises(utils.Failure, match=message):
        main.main(small_args(sparse_below=90, trials=2))
    args = small_args(sparse_below=0, trials=2)
    assert finished_rounds(args) == 2
    main.main(args)
    assert finished_rounds(args) == 3


# ---- The rehearsal -------------------------------------------------------------------------------


def sparse_step(args, data, percent=10):
    """Return a step with this percentage of its weights, after two iterations."""
    state = main.new_state(args, main.new_model(args, 0))
    torch.manual_seed(0)
    for mask in state.masks.values():
        mask.bernoulli_(percent / 100)
    main.apply_masks(state.model, state.masks)
    utils.restore(state.start, state.model.state_dict())
    step = main.Step(args, state, data)
    step()
    step()
    return step


def dropout_draws_in_the_order_of_memory():
    """It does not in torch 2.6."""
    ones = torch.ones(8, 5)
    dropped = []
    for tensor in (ones, ones.t().contiguous().t()):
        torch.manual_seed(0)
        dropped.append(F.dropout(tensor))
    return not torch.equal(*dropped)


def test_in_alexnet_contiguous_outputs_are_taken_because_of_dropout(small_args, capsys):
    args = small_args(dataset="cifar10", arch_type="alexnet", batch_size=8)
    data = small_data(40, channels=3, size=32)
    step = sparse_step(args, data, percent=5)
    before = utils.snapshot(vars(step.state))
    strided, _ = step.fast_ways()[1]
    problem = step.problem_of(strided, before, step.rehearse(before))
    if dropout_draws_in_the_order_of_memory():
        assert re.match(r"the (loss|gradient of \S+) changes by", problem)
    else:
        assert problem == ""
    step.take_plain_way()
    step.rewind(before)
    step.speed_up()
    patterns = [layer.pattern for layer in sparse_layers(step)]
    assert [pattern.contiguous for pattern in patterns] == [True] * 3
    assert capsys.readouterr().out == ""


def sparse_layers(step):
    return [layer for layer in step.state.model.modules() if isinstance(layer, SparseLinear)]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("below", [0, 20])
def test_the_rehearsal_changes_nothing(optimizer, below, small_args, monkeypatch):
    args = small_args(optimizer=optimizer, sparse_below=below)
    step = sparse_step(args, small_data(480))
    before = utils.snapshot(vars(step.state))
    step.speed_up()
    assert len(sparse_layers(step)) == (3 if below else 0)
    assert all(not layer.pattern.contiguous for layer in sparse_layers(step))
    after = utils.snapshot(vars(step.state))
    for tensors in before["optimizer_state"].values():
        for name, mask in step.state.masks.items():
            if below and tensors[name].dim():  # sparse layers have no state of pruned weights
                tensors[name] *= mask
    assert same(before, after)
    assert all(
        tensor.any() for tensors in after["optimizer_state"].values() for tensor in tensors.values()
    )
    assert step.state.model.training


def test_dense_rounds_rehearse_nothing(small_args, monkeypatch):
    step = sparse_step(small_args(sparse_below=5), small_data(480))
    monkeypatch.setattr(step, "rehearse", None)
    step.speed_up()
    assert not sparse_layers(step)


def test_the_rehearsal_has_the_first_iterations_of_the_round(small_args, monkeypatch):
    step = sparse_step(small_args(lr_milestones=2), small_data(480))
    seen = []
    iterate = step.iterate

    def run():
        index = step.position.item()
        seen.append((torch.initial_seed(), step.batches[index].tolist(), step.rates[index].item()))
        iterate()

    step.iterate = run
    step.speed_up()
    dense, sparse = seen[:3], seen[3:]
    seen.clear()
    step.state.iteration = 0
    step.seeds = []
    for _ in range(3):
        step()
    assert dense == sparse == seen
    assert len({rate for _, _, rate in seen}) == 2


def wrong_values(product):
    def backward(ctx, gradient):
        of_x, of_values, *rest = product(ctx, gradient)
        return of_x, 1.01 * of_values, *rest

    return backward


def wrong_inputs(product):
    def backward(ctx, gradient):
        of_x, *rest = product(ctx, gradient)
        return of_x if of_x is None else 1.01 * of_x, *rest

    return backward


def wrong_outputs(product):
    def forward(ctx, x, values, bias, pattern):
        return product(ctx, x, values, bias, pattern).mul_(1.1)

    return forward


def wrong_evaluation(product):
    def forward(ctx, x, values, bias, pattern):
        wrong = 10.0 if not values.requires_grad or len(x) > 60 else 1.0
        return product(ctx, x, values, bias, pattern).mul_(wrong)

    return forward


@pytest.mark.parametrize(
    ("method", "wrong", "name"),
    [
        ("backward", wrong_values, "gradient of 1.weight"),
        ("backward", wrong_inputs, "gradient of 1.weight"),
        ("forward", wrong_outputs, r"(loss|gradient of \d.weight)"),
        ("forward", wrong_evaluation, "loss of an evaluation"),
    ],
)
def test_sparse_layers_that_compute_something_else_are_not_used(
    method, wrong, name, small_args, monkeypatch, capsys
):
    step = sparse_step(small_args(), small_data(480))
    before = utils.snapshot(vars(step.state))
    product = getattr(SparseProduct, method)
    monkeypatch.setattr(SparseProduct, method, staticmethod(wrong(product)))
    step.speed_up()
    [line] = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"running without sparse layers: the {name} changes by \S+%", line)
    assert not sparse_layers(step)
    assert same(before, utils.snapshot(vars(step.state)))
    monkeypatch.undo()
    step()  # what it updates is dense again
    assert [weight.dim() for weight, _ in step.masks] == [2, 2, 2]


def test_a_wrong_gradient_is_noticed_in_a_deep_network_in_which_a_bias_hides_it(
    small_args, monkeypatch
):
    """Its last bias has a gradient that is longer than all others by orders of magnitude."""

    def deep(*_):
        layers = [module for _ in range(6) for module in (nn.Linear(50, 50), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), *layers, nn.Linear(50, 10))

    monkeypatch.setattr(archs, "build", deep)
    step = sparse_step(small_args(batch_size=20), small_data(480))
    before = utils.snapshot(vars(step.state))
    expected = step.rehearse(before)
    assert expected["gradient of 1.weight"].norm() < 1e-2
    product = SparseProduct.backward
    monkeypatch.setattr(SparseProduct, "backward", staticmethod(wrong_values(product)))
    problem = step.problem_of(step.fast_ways()[1][0], before, expected)
    assert problem.startswith("the gradient of 1.weight changes")


def test_an_error_in_the_rehearsal_leaves_the_state_as_it_was(small_args):
    """A checkpoint is saved if the reader of the output ends, and the network may print."""
    step = sparse_step(small_args(), small_data(480))
    before = utils.snapshot(vars(step.state))
    iterate = step.iterate
    calls = []

    def run():
        calls.append(0)
        if len(calls) == 3:
            raise BrokenPipeError
        iterate()

    step.iterate = run
    with pytest.raises(BrokenPipeError):
        step.speed_up()
    assert len(calls) == 3
    assert same(before, utils.snapshot(vars(step.state)))


def test_used_up_memory_is_reported_as_such(small_args, monkeypatch):
    step = sparse_step(small_args(), small_data(480))

    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(main, "make_sparse", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        step.speed_up()


def test_sparse_layers_are_not_for_bfloat16(small_args, capsys):
    with pytest.raises(SystemExit):
        small_args(amp=True, sparse_below=5)
    assert "error: --sparse_below is not for --amp: " in capsys.readouterr().err
    assert small_args(amp=True, sparse_below=0).sparse_below == 0
