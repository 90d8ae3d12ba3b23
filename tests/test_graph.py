"""What a training step owes its speed to: a CUDA graph around it, with the same numbers as without, bfloat16, kept memory."""

import platform
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import main
import utils
from conftest import command, same, small_data, small_network


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


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


@pytest.fixture(params=["adam", "sgd"])
def training(request, small_args):
    """A state, its epoch, and its step, in the middle of training."""
    args = small_args(optimizer=request.param)
    torch.manual_seed(0)
    state, data = main.new_state(args, small_network()), small_data(480)
    epoch = main.Epoch(args, 6, torch.device("cpu"))
    step = main.make_step(args, state, data, epoch)
    epoch.begin(args, state, 360)
    step()
    step()
    return state, epoch, step


def test_on_the_cpu_the_step_stays_as_it_is(training):
    state, epoch, step = training
    assert main.graphed(step, state, epoch) is step


def test_where_capture_fails_that_is_said_and_nothing_is_changed(training, broken_gpu, capsys):
    state, epoch, step = training
    before, calls = utils.copied(vars(state)), []
    assert all(tensor.any() for tensors in state.moments.values() for tensor in tensors.values())
    epoch.done = epoch.done.as_subclass(OnGpu)
    result = main.graphed(lambda: calls.append(step()), state, epoch)
    assert len(calls) == 3, "steps for real come before a capture"
    assert capsys.readouterr().out == (
        "no CUDA graph, each step is launched anew: operation not permitted when stream is capturing\n"
    )
    assert same(before, utils.copied(vars(state)))
    result()
    assert len(calls) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "flags",
    [
        {"arch_type": "fc1"},
        {"arch_type": "resnet18"},
        {"arch_type": "resnet20", "optimizer": "sgd", "lr": 0.01, "warmup_iter": 5},
        {"arch_type": "lenet5", "augment": True},
        {"arch_type": "fc1", "amp": True},
    ],
)
def test_a_graph_gives_the_numbers_of_single_launches(flags, small_args, train_round, monkeypatch, capsys):
    device, losses = torch.device("cuda"), []
    for graph in (True, False):
        if not graph:
            monkeypatch.setattr(main, "graphed", lambda step, *_: step)
        args = small_args(**{name: value for name, value in flags.items() if value is not True})
        args.augment, args.amp = flags.get("augment", False), flags.get("amp", False)
        data = small_data(480)
        for name in ("train", "val", "test"):
            setattr(data, name, [tensor.to(device) for tensor in getattr(data, name)])
        model = main.prepare(main.new_model(args, 0), args, device)
        torch.manual_seed(0)
        masks = {name: torch.rand_like(weight) < 0.5 for name, weight in main.prunable(model).items()}
        state = train_round(args, model, data, masks)
        losses.append(utils.by_epoch(state.rows[-1], "train_loss"))
    assert "no CUDA graph" not in capsys.readouterr().out
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if "amp" in flags else 1e-3)


def test_bfloat16_learns_and_keeps_weights_in_float32(small_args, train_round):
    args = small_args(end_iter=4)
    args.amp = True
    data = main.load_data(args, torch.device("cpu"))
    model = main.prepare(main.new_model(args, 0), args, torch.device("cpu"))
    assert model(data.normalize(data.test[0][:2])).dtype == torch.bfloat16
    state = train_round(args, model, data)
    assert state.rows[-1][-1]["test_accuracy"] > 80
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_serves_the_next_step_without_page_faults(tmp_path):
    code = """
import resource, sys, torch, main
main.main(main.parse_args(["--dataset=digits", "--prune_iterations=1", "--end_iter=1", "--gpu=cpu", *sys.argv[1:]]))
faults = []
for _ in range(20):
    torch.empty(2**24).zero_()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[9])
"""
    result = command("-c", code, f"--output_dir={tmp_path}")
    faults = int(result.stdout.splitlines()[-1])
    assert faults < 1000, "each of the last ten tensors of 64 MB has 16384 pages"
