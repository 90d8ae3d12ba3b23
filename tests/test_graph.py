"""What a training step owes its speed to: a CUDA graph around it, with the same numbers as without, bfloat16, kept memory."""

import itertools
import platform
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import main
from conftest import QuietLog, command, small_data, small_network


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
    """A model, a run, and its step, in the middle of training."""
    args = small_args(optimizer=request.param)
    torch.manual_seed(0)
    model, data = small_network(), small_data(480)
    run = main.new_run(args, model, 6, torch.device("cpu"))
    step = main.make_step(args, model, main.dense_masks(model), data, run)
    main.begin_epoch(args, run, 360, 0, 1, 0)
    step()
    step()
    return model, run, step


def state(model, run):
    tensors = [*model.state_dict().values(), run.loss, run.done, run.rates, *itertools.chain(*run.moments.values())]
    return [tensor.clone() for tensor in tensors]


def test_on_the_cpu_the_step_stays_as_it_is(training):
    model, run, step = training
    assert main.graphed(step, model, run) is step


def test_where_capture_fails_that_is_said_and_nothing_is_changed(training, broken_gpu, capsys):
    model, run, step = training
    before, calls = state(model, run), []
    assert any(tensor.any() for tensor in itertools.chain(*run.moments.values()))
    run.done = run.done.as_subclass(OnGpu)
    result = main.graphed(lambda: calls.append(step()), model, run)
    assert len(calls) == 3, "steps for real come before a capture"
    assert capsys.readouterr().out == (
        "no CUDA graph, each step is launched anew: operation not permitted when stream is capturing\n"
    )
    assert all(torch.equal(old, new) for old, new in zip(before, state(model, run), strict=True))
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
def test_a_graph_gives_the_numbers_of_single_launches(flags, small_args, monkeypatch, capsys):
    device, losses = torch.device("cuda"), []
    for graph in (True, False):
        if not graph:
            monkeypatch.setattr(main, "graphed", lambda step, *_: step)
        log, args = QuietLog(), small_args(**{name: value for name, value in flags.items() if value is not True})
        args.augment, args.amp = flags.get("augment", False), flags.get("amp", False)
        data = small_data(480)
        for name in ("train", "val", "test"):
            setattr(data, name, [tensor.to(device) for tensor in getattr(data, name)])
        model = main.prepare(main.new_model(args, 0), args, device)
        torch.manual_seed(0)
        masks = {name: torch.rand_like(weight) < 0.5 for name, weight in main.prunable(model).items()}
        main.train(args, model, masks, data, 0, log)
        losses.append(log.losses)
    assert "no CUDA graph" not in capsys.readouterr().out
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if "amp" in flags else 1e-3)


def test_bfloat16_learns_and_keeps_weights_in_float32(small_args, log):
    args = small_args(end_iter=4)
    args.amp = True
    data = main.load_data(args, torch.device("cpu"))
    model = main.prepare(main.new_model(args, 0), args, torch.device("cpu"))
    assert model(data.normalize(data.test[0][:2])).dtype == torch.bfloat16
    main.train(args, model, main.dense_masks(model), data, 0, log)
    assert log.rows[-1]["test_accuracy"] > 80
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
