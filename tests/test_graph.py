"""The CUDA graph around a training step: the same numbers with and without, and what happens where none can be made."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import main
import utils
from conftest import QuietLog, small_data


class Counter:
    """Stands in for the counter of a GPU's steps."""

    is_cuda = True

    def zero_(self):
        pass


@pytest.fixture
def broken_gpu(monkeypatch):
    """A torch.cuda whose streams work on the CPU and whose graphs cannot be captured."""

    class Graph:
        def __init__(self):
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def model_step_optimizer():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)

    def step():
        optimizer.zero_grad()
        model(torch.rand(8, 3)).square().sum().backward()
        optimizer.step()

    return model, step, optimizer


def test_on_the_cpu_the_step_stays_as_it_is():
    model, step, optimizer = model_step_optimizer()
    assert main.graphed(step, torch.zeros(1), model, optimizer) is step


@pytest.mark.parametrize("steps_before", [0, 2])
def test_where_capture_fails_that_is_said_and_nothing_is_changed(steps_before, broken_gpu, capsys):
    model, step, optimizer = model_step_optimizer()
    for _ in range(steps_before):
        step()
    state = utils.copy_state(model)
    moments = [tensor.clone() for entry in optimizer.state.values() for tensor in entry.values()]
    calls = []
    result = main.graphed(lambda: calls.append(step()), Counter(), model, optimizer)
    assert len(calls) == 3, "steps for real come before a capture"
    assert capsys.readouterr().out == (
        "no CUDA graph, each step is launched anew: operation not permitted when stream is capturing\n"
    )
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    after = [tensor for entry in optimizer.state.values() for tensor in entry.values()]
    if steps_before:
        assert all(torch.equal(old, new) for old, new in zip(moments, after, strict=True))
    else:
        assert not any(tensor.any() for tensor in after)
    result()
    assert len(calls) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("arch_type", ["fc1", "resnet18"])
def test_a_graph_gives_the_numbers_of_single_launches(arch_type, small_args, monkeypatch, capsys):
    device, losses = torch.device("cuda"), []
    for graph in (True, False):
        if not graph:
            monkeypatch.setattr(main, "graphed", lambda step, *_: step)
        args, log = small_args(arch_type=arch_type), QuietLog()
        data = small_data(480)
        for name in ("train", "val", "test"):
            setattr(data, name, [tensor.to(device) for tensor in getattr(data, name)])
        model = main.prepare(main.new_model(args, 0), args, device)
        torch.manual_seed(0)
        masks = {name: torch.rand_like(weight) < 0.5 for name, weight in main.prunable(model).items()}
        main.train(args, model, masks, data, 0, log)
        losses.append(log.losses)
    assert "no CUDA graph" not in capsys.readouterr().out
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_bfloat16_learns_and_keeps_weights_in_float32(small_args, log):
    args = small_args(end_iter=4)
    args.amp = True
    data = main.load_data(args, torch.device("cpu"))
    model = main.prepare(main.new_model(args, 0), args, torch.device("cpu"))
    assert model(data.normalize(data.test[0][:2])).dtype == torch.bfloat16
    main.train(args, model, main.dense_masks(model), data, 0, log)
    assert log.rows[-1]["test_accuracy"] > 80
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
