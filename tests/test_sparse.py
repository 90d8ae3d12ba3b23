"""Linear layers that compute only with their survivors: the same numbers as dense ones."""

import ast
import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import archs
import main
import utils
from archs.sparse import SparseLinear, densify, sparsify
from conftest import finished_rounds, losses_of, same, ticket, trial_data


def pair(mask, bias=True, dtype=torch.float64, contiguous=True):
    """Return an nn.Linear with these survivors and the SparseLinear for it."""
    rows, columns = mask.shape
    torch.manual_seed(0)
    dense = nn.Linear(columns, rows, bias, dtype=dtype)
    with torch.no_grad():
        dense.weight.mul_(mask)
    return dense, SparseLinear(copy.deepcopy(dense), mask, contiguous)


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
    weight = layer.weight.grad[mask] if isinstance(layer, nn.Linear) else layer.values.grad
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
            sparse.values -= 0.1 * sparse.values.grad
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
    sparse = SparseLinear(dense, EMPTY)
    y = sparse(torch.randn(5, 4, dtype=torch.float64))
    y.sum().backward()
    assert sparse.values.grad is None
    assert sparse.bias.grad.tolist() == [5, 5, 5]


@pytest.mark.parametrize("within", [True, False])
def test_under_autocast_the_output_is_bfloat16_and_gradients_are_float32(within):
    mask = torch.rand(20, 30) < 0.1
    dense, sparse = pair(mask, dtype=torch.float32)
    x = torch.randn(50, 30)
    results = []
    for layer in (dense, sparse):
        inputs = [x.clone().requires_grad_(), x.bfloat16().requires_grad_()]
        for x_ in inputs:
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x_)
                assert y.dtype == torch.bfloat16
                if within:
                    y.sum().backward()
            if not within:
                y.sum().backward()
            assert x_.grad.dtype == x_.dtype
            results.append(y.float())
    torch.testing.assert_close(results[2:], results[:2], rtol=0.02, atol=0.02)
    assert sparse.values.grad.dtype == sparse.bias.grad.dtype == torch.float32
    torch.testing.assert_close(sparse.values.grad, dense.weight.grad[mask], rtol=0.02, atol=0.02)


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
    for assign in (False, True):
        layer = copy.deepcopy(sparse)
        layer.load_state_dict(copy.deepcopy(dense.state_dict()), assign=assign)
        x = torch.randn(5, 4, dtype=torch.float64)
        torch.testing.assert_close(layer(x), dense(x))
        assert layer.values.tolist() == [5, 8, 11, 12]
        fresh = nn.Linear(4, 3, bias, dtype=torch.float64)
        fresh.load_state_dict(layer.state_dict())
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


def test_the_dense_weight_can_be_read_and_differentiated():
    dense, sparse = pair(EMPTY)
    assert torch.equal(sparse.weight, dense.weight)
    assert torch.equal(sparse.mask, EMPTY)
    numbers = torch.arange(12.0, dtype=torch.float64).view(3, 4)
    (sparse.weight * numbers).sum().backward()
    assert sparse.values.grad.tolist() == [4, 7, 10, 11]


def test_a_copy_is_independent():
    dense, sparse = pair(EMPTY)
    other = copy.deepcopy(sparse)
    with torch.no_grad():
        sparse.values.zero_()
        sparse.bias.zero_()
    assert torch.equal(other.weight, dense.weight)
    assert torch.equal(other.bias, dense.bias)


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

    def forward(self, x):
        x = self.at_the_limit(x) + self.below_it(x) + self.unlisted(x)
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
    expected = copy.deepcopy(model)
    model.twice.eval()
    sparsify(model, masks, below=30)
    sparse = {
        name
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, SparseLinear)
    }
    assert sparse == {"at_the_limit", "below_it", "twice.0", "again"}
    assert model.again is model.twice[0]
    assert model.below_it.training
    assert not model.again.training
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
    expected = copy.deepcopy(model)
    model.twice[0].eval()
    model.below_it.weight.requires_grad = False
    bias = model.again.bias
    sparsify(model, masks, below=100)
    densify(model)
    assert str(model) == str(expected)
    found = model.state_dict()
    assert list(found) == list(expected.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    assert model.again is model.twice[0]
    assert model.again.bias is bias
    assert not model.again.training
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
            loss = nn.functional.cross_entropy(model(x), y)
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
    """The sparse layers that are created."""
    found, create = [], SparseLinear.__init__

    def spy(layer, *args):
        create(layer, *args)
        found.append(layer)

    monkeypatch.setattr(SparseLinear, "__init__", spy)
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
        main.make_sparse(args, state)
        step = main.Step(args, state, trial_data(args))
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


KINDS = {
    **{name: {"prune_type": name} for name in main.PRUNE_TYPES},
    **{name: {"criterion": name} for name in main.CRITERIA},
    "one_shot": {"one_shot": True},
    "augment": {"augment": True},
    "global": {"prune_scope": "global"},
    "rewind": {"rewind_iter": 5, "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.01},
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
        # The check before the run makes two.
        assert (len(layers) > 2) if sparse_below else not layers
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


class Merging(nn.Module):
    """A network that needs the layout of a dense layer's output."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(28, 10)

    def forward(self, x):
        return self.layer(x.flatten(0, 2)).view(len(x), -1)[:, :10]


class Clamping(nn.Module):
    """A network that changes its weight itself."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(784, 10)

    def forward(self, x):
        self.layer.weight.data.clamp_(-0.01, 0.01)
        return self.layer(x.flatten(1))


@pytest.mark.parametrize(
    ("network", "problem"), [(Merging, "RuntimeError: view size"), (Clamping, "other logits")]
)
def test_a_network_that_needs_dense_layers_is_refused_before_training(
    network, problem, small_args, undrawn, monkeypatch
):
    monkeypatch.setattr(archs, "build", lambda *_: network())
    message = rf"does not work with sparse linear layers: add --sparse_below=0 \({problem}"
    with pytest.raises(utils.BadInput, match=message):
        main.main(small_args())
    args = small_args(prune_iterations=1, end_iter=1, sparse_below=0)
    main.main(args)
    assert finished_rounds(args) == 1


def test_only_dense_layers_are_masked_and_only_survivors_are_updated(small_args):
    args = small_args(sparse_below=50)
    state = main.new_state(args, main.new_model(args, 0))
    state.masks["1.weight"].bernoulli_(0.1)
    main.apply_masks(state.model, state.masks)
    main.make_sparse(args, state)
    step = main.Step(args, state, trial_data(args))
    shapes = [tuple(weight.shape) for weight, _ in step.masks]
    assert shapes == [(100, 300), (10, 100)]
    survivors = int(state.masks["1.weight"].sum())
    sizes = [survivors, 300, 30000, 100, 1000, 10]
    assert [parameter.numel() for parameter in step.parameters] == sizes
    for name in ("average", "square"):
        assert [tensor.numel() for tensor in step.optimizer_state[name]] == sizes
