"""What a training step owes its speed to: a CUDA graph around it, with the same numbers as without; bfloat16."""

import itertools
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import archs
import main
import utils
from conftest import same, small_data, small_network


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.fixture
def broken_gpu(monkeypatch):
    """A torch.cuda whose streams work on the CPU and whose captures fail, in a way that can be set: broken_gpu(error)."""

    class Capture:
        error = RuntimeError("operation not permitted when stream is capturing\nmore lines")

        def __init__(self, graph, stream):
            streams.append(stream)

        def __enter__(self):
            pass

        def __exit__(self, *error):
            raise RuntimeError("capture_end: the capture was invalidated")  # as torch does, which hides the first error

    made, streams = [], []
    stream = SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: made.append(stream) or stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: streams.append(stream) or nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    main.side_stream.cache_clear()
    yield made, streams
    main.side_stream.cache_clear()


def failing(step, error):
    """A step that can be taken three times, and then, when it is captured, raises."""
    calls = []

    def run():
        calls.append(None)
        if len(calls) == 4:
            raise error
        step()

    return run, calls


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


def test_where_capture_fails_the_first_error_is_named_and_nothing_is_changed(training, broken_gpu, capsys):
    state, epoch, step = training
    before = utils.copied(vars(state))
    assert all(tensor.any() for tensors in state.moments.values() for tensor in tensors.values())
    epoch.done = epoch.done.as_subclass(OnGpu)
    failing_step, calls = failing(step, RuntimeError("operation not permitted when stream is capturing\nmore lines"))
    result = main.graphed(failing_step, state, epoch)
    assert len(calls) == 4, "steps for real come before a capture"
    assert capsys.readouterr().out == (
        "no CUDA graph, each step is launched anew: operation not permitted when stream is capturing\n"
    )
    assert same(before, utils.copied(vars(state)))
    result()
    assert len(calls) == 5


def test_out_of_memory_in_a_capture_is_out_of_memory(training, broken_gpu):
    state, epoch, step = training
    epoch.done = epoch.done.as_subclass(OnGpu)
    with pytest.raises(torch.OutOfMemoryError, match="of memory"):
        main.graphed(failing(step, torch.OutOfMemoryError("CUDA out of memory"))[0], state, epoch)


def test_warm_up_and_capture_of_all_rounds_share_one_stream(training, broken_gpu):
    state, epoch, step = training
    made, streams = broken_gpu
    epoch.done = epoch.done.as_subclass(OnGpu)
    for _ in range(2):
        main.graphed(failing(step, RuntimeError("not today"))[0], state, epoch)
    assert len(made) == 1
    assert len(streams) == 4
    assert all(stream is made[0] for stream in streams)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose convolutions give the same numbers each time, which choosing the fastest does not."""
    device = main.pick_device(0)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(main, "pick_device", lambda _: device)
    torch.set_float32_matmul_precision("highest")
    return device


def with_dropout(*_):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(784, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10))


@needs_gpu
@pytest.mark.parametrize(
    "flags",
    [
        {"arch_type": "fc1"},
        {"arch_type": "resnet18"},
        {"arch_type": "resnet20", "optimizer": "sgd", "lr": 0.01, "warmup_iter": 5},
        {"arch_type": "fc1", "optimizer": "sgd", "lr": 0.01, "momentum": 0},
        {"arch_type": "lenet5", "augment": True},
        {"arch_type": "dropout"},
        {"arch_type": "fc1", "amp": True},
    ],
)
def test_a_graph_gives_the_numbers_of_single_launches(flags, small_args, train_round, gpu, monkeypatch, capsys):
    losses = []
    if flags["arch_type"] == "dropout":
        flags = {}
        monkeypatch.setattr(archs, "build", with_dropout)
    for graph in (True, False):
        if not graph:
            monkeypatch.setattr(main, "graphed", lambda step, *_: step)
        args = small_args(**{name: value for name, value in flags.items() if value is not True})
        args.augment, args.amp = flags.get("augment", False), flags.get("amp", False)
        data = small_data(480)
        for name in ("train", "val", "test"):
            setattr(data, name, [tensor.to(gpu) for tensor in getattr(data, name)])
        model = main.prepare(main.new_model(args, 0), args, gpu)
        torch.manual_seed(0)
        masks = {name: torch.rand_like(weight) < 0.5 for name, weight in main.prunable(model).items()}
        state = train_round(args, model, data, masks)
        losses.append(utils.by_epoch(state.rows[-1], "train_loss"))
    assert "no CUDA graph" not in capsys.readouterr().out
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if "amp" in flags else 1e-5)


@needs_gpu
def test_rounds_on_a_gpu_take_no_more_memory_than_the_first(small_args, gpu, starts, monkeypatch):
    reserved, train = [], main.train
    monkeypatch.setattr(main, "train", lambda *rest: (train(*rest), reserved.append(torch.cuda.memory_reserved())))
    main.main(small_args(gpu=0, prune_iterations=4))
    assert len(set(reserved[1:])) == 1
    assert reserved[1] <= 1.2 * reserved[0]


@needs_gpu
def test_on_a_gpu_too_a_run_stopped_within_an_epoch_goes_on_as_if_undisturbed(small_args, gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(archs, "build", with_dropout)
    losses = []
    for stop in (None, 27):
        args = small_args(gpu=0, prune_iterations=2, output_dir=tmp_path / str(stop))
        args.augment = True
        if stop:
            ticks, tick = itertools.count(1), utils.Log.tick

            def act(log, ticks=ticks, tick=tick, stop=stop):
                tick(log)
                if next(ticks) == stop:
                    signal.raise_signal(signal.SIGTERM)

            with monkeypatch.context() as patch, pytest.raises(utils.Stopped):
                patch.setattr(utils.Log, "tick", act)
                main.main(args)
        main.main(args)
        losses.append([np.load(utils.Files(args).array(f"all_loss_{r}")).tolist() for r in range(2)])
    assert losses[0] == losses[1]


@needs_gpu
def test_a_step_that_cannot_be_captured_is_launched_anew_each_time(small_args, train_round, gpu, monkeypatch, capsys):
    class Waits(nn.Module):
        def forward(self, x):
            return x * (1.0 if x.sum().item() > -1e9 else 0.0)

    monkeypatch.setattr(archs, "build", lambda *_: nn.Sequential(nn.Flatten(), Waits(), nn.Linear(784, 10)))
    main.main(small_args(gpu=0, prune_iterations=1))
    assert "no CUDA graph" in capsys.readouterr().out


def test_bfloat16_learns_and_keeps_weights_in_float32(small_args, train_round):
    args = small_args(end_iter=4)
    args.amp = True
    data = main.load_data(args, torch.device("cpu"))
    model = main.prepare(main.new_model(args, 0), args, torch.device("cpu"))
    assert model(data.normalize(data.test[0][:2])).dtype == torch.bfloat16
    state = train_round(args, model, data)
    assert state.rows[-1][-1]["test_accuracy"] > 80
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
