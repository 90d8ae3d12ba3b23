"""The step as a CUDA graph, which must give the same numbers as without; bfloat16."""

import math
import re
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import archs
import main
import utils
from conftest import losses_of, needs_gpu, same, small_data, small_network, trial_data


@pytest.fixture
def fake_gpu(monkeypatch):
    """Replace torch.cuda by the CPU. The test sets what a graph replays, as `fake_gpu.replay`."""
    fake = SimpleNamespace(streams=[], used=[], replay=None)
    stream = SimpleNamespace(wait_stream=lambda _: None)

    class Capture:
        def __init__(self, graph, stream):
            fake.used.append(stream)

        def __enter__(self):
            pass

        def __exit__(self, error, *_):
            if error:  # torch does the same, which hides the first error
                raise RuntimeError("capture_end: the capture was invalidated")

    def new_stream():
        fake.streams.append(stream)
        return stream

    def use(stream):
        fake.used.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=fake.replay))
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    main.side_stream.cache_clear()
    yield fake
    main.side_stream.cache_clear()


@pytest.fixture(params=["adam", "sgd"])
def step(request, small_args):
    """A step of a network with half of its weights, after two iterations."""
    args = small_args(optimizer=request.param)
    torch.manual_seed(0)
    state = main.new_state(args, small_network())
    for mask in state.masks.values():
        mask.bernoulli_(0.5)
    main.apply_masks(state.model, state.masks)
    utils.restore(state.start, state.model.state_dict())
    step = main.Step(args, state, small_data(480))
    step()
    step()
    step.on_gpu = True
    return step


def fail_in_capture(step, error):
    """Make the fourth iteration, which is the captured one, raise an error; return the calls."""
    calls = []
    iterate = step.iterate

    def run():
        calls.append(step.position.item())
        if len(calls) == 4:
            raise error
        iterate()

    step.iterate = run
    return calls


def test_on_the_cpu_nothing_is_captured(step):
    step.on_gpu = False
    step.speed_up()
    assert step.graph is None
    assert step.state.iteration == 2


def test_a_graph_that_computes_the_same_is_kept_and_changes_nothing(step, fake_gpu, capsys):
    before = utils.snapshot(vars(step.state))
    moments = step.state.optimizer_state.values()
    assert all(tensor.any() for tensors in moments for tensor in tensors.values())
    fake_gpu.replay = step.iterate
    step.speed_up()
    assert step.graph.replay == step.iterate
    assert same(before, utils.snapshot(vars(step.state)))
    assert capsys.readouterr().out == ""


def test_a_graph_is_compared_on_the_first_iterations_of_the_round(step, fake_gpu):
    """Eager iterations and replays have the seeds, batches and rates of training."""
    seen = []
    iterate = step.iterate

    def run():
        index = step.position.item()
        batch = step.batches[index].tolist()
        seen.append((torch.initial_seed(), batch, step.rates[index].item()))
        iterate()

    step.args.lr_milestones = [2]
    step.iterate = fake_gpu.replay = run
    step.speed_up()
    eager, captured, replayed = seen[:3], seen[3:4], seen[4:]
    seen.clear()
    step.graph = None
    step.state.iteration = 0
    step.seeds = []
    for _ in range(3):
        step()
    assert eager == replayed == seen
    assert len(captured) == 1
    assert len({rate for _, _, rate in seen}) == 2


def no_masks(step):
    masks = step.masks
    step.masks = []
    type(step).iterate(step)
    step.masks = masks


def no_update(step):
    weights = utils.snapshot(step.state.model)
    type(step).iterate(step)
    step.state.model.load_state_dict(weights)


def one_batch(step):
    position = step.position.clone()
    step.position.zero_()
    type(step).iterate(step)
    step.position.copy_(position + 1)


def one_seed(step):
    torch.manual_seed(0)
    type(step).iterate(step)


def no_loss(step):
    loss = step.state.loss.clone()
    type(step).iterate(step)
    step.state.loss.copy_(loss)


def no_number(step):
    type(step).iterate(step)
    step.state.loss.fill_(math.nan)


@pytest.mark.parametrize("wrong", [no_masks, no_update, no_loss, one_batch, one_seed, no_number])
def test_a_graph_that_computes_something_else_is_not_used(wrong, step, fake_gpu, capsys):
    step.state.loss.fill_(1e6)  # of a long epoch
    before = utils.snapshot(vars(step.state))
    fake_gpu.replay = lambda: wrong(step)
    step.speed_up()
    assert step.graph is None
    assert same(before, utils.snapshot(vars(step.state)))
    [line] = capsys.readouterr().out.splitlines()
    name = "loss" if wrong is no_number else "(loss|gradient of .*|update)"
    size = "nan" if wrong is no_number else r"[\d.e+-]+"
    assert re.fullmatch(rf"running without a CUDA graph: the {name} changes by {size}%", line)


@pytest.mark.parametrize("loss", [math.inf, math.nan, 1.002])
def test_only_finite_and_equal_results_match(loss):
    expected = {"loss": torch.tensor(loss if loss == math.inf else 1.0)}
    problem = main.mismatch({"loss": torch.tensor(loss)}, expected)
    assert problem.startswith("the loss changes ")
    assert main.mismatch({}, expected) == "there is no loss"
    assert main.mismatch({"loss": torch.tensor(1.0005)}, {"loss": torch.tensor(1.0)}) == ""


def test_a_captured_graph_is_replayed_with_the_iterations_seed(step):
    replayed = []
    step.graph = SimpleNamespace(replay=lambda: replayed.append(torch.initial_seed()))
    step.iterate = None
    step()
    assert replayed == [step.seeds[2]]
    assert step.state.iteration == 3


def test_a_failed_capture_reports_the_first_error_and_changes_nothing(step, fake_gpu, capsys):
    before = utils.snapshot(vars(step.state))
    error = RuntimeError("operation not permitted when stream is capturing\nmore lines")
    calls = fail_in_capture(step, error)
    step.speed_up()
    assert step.graph is None
    assert calls == [0, 1, 2, 3], "three iterations come before a capture"
    assert capsys.readouterr().out == (
        "running without a CUDA graph: RuntimeError: operation not permitted when stream is "
        "capturing\n"
    )
    assert same(before, utils.snapshot(vars(step.state)))
    step()
    assert len(calls) == 5


def test_out_of_memory_in_a_capture_is_raised(step, fake_gpu):
    fail_in_capture(step, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError, match="of memory"):
        step.speed_up()


def test_all_captures_share_one_stream(step, fake_gpu):
    fake_gpu.replay = step.iterate
    for _ in range(2):
        step.speed_up()
    assert len(fake_gpu.streams) == 1
    assert len(fake_gpu.used) == 6
    assert all(stream is fake_gpu.streams[0] for stream in fake_gpu.used)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU with deterministic convolutions instead of the fastest ones."""
    device = main.pick_device(0)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(main, "pick_device", lambda _: device)
    torch.set_float32_matmul_precision("highest")
    return device


def with_dropout(*_):
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(784, 50),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(50, 10),
    )


@needs_gpu
@pytest.mark.parametrize(
    "flags",
    [
        {"arch_type": "fc1"},
        {"arch_type": "resnet18"},
        {"arch_type": "resnet20", "optimizer": "sgd", "lr": 0.01, "warmup_iter": 5},
        {"arch_type": "fc1", "optimizer": "sgd", "lr": 0.01, "momentum": 0},
        {"arch_type": "fc1", "optimizer": "sgd", "lr": 0.01, "nesterov": True},
        {"arch_type": "fc1", "optimizer": "adamw", "weight_decay": 0.5, "label_smoothing": 0.1},
        {"arch_type": "lenet5", "optimizer": "adamw", "lr_schedule": "cosine"},
        {"arch_type": "lenet5", "augment": True},
        {"arch_type": "dropout"},
        {"arch_type": "fc1", "amp": True},
    ],
)
def test_a_graph_gives_the_losses_of_eager_iterations(
    flags, small_args, train_round, gpu, monkeypatch, capsys
):
    losses = []
    if flags["arch_type"] == "dropout":
        flags = {}
        monkeypatch.setattr(archs, "build", with_dropout)
    for graph in (True, False):
        if not graph:
            monkeypatch.setattr(main.Step, "speed_up", lambda _: None)
        args = small_args(**flags)
        data = small_data(480, device=gpu)
        model = main.new_model(args, 0, gpu)
        torch.manual_seed(0)
        masks = {
            name: torch.rand_like(weight) < 0.5 for name, weight in main.prunable(model).items()
        }
        state = train_round(args, model, data, masks)
        losses.append(utils.by_epoch(state.rows[-1], "train_loss"))
    assert "without a CUDA graph" not in capsys.readouterr().out
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if "amp" in flags else 1e-5)


@needs_gpu
def test_gpu_memory_does_not_grow_from_round_to_round(small_args, gpu, starts, monkeypatch):
    reserved, train = [], main.train
    monkeypatch.setattr(
        main, "train", lambda *rest: (train(*rest), reserved.append(torch.cuda.memory_reserved()))
    )
    main.main(small_args(gpu=0, prune_iterations=4))
    assert len(set(reserved[1:])) == 1
    assert reserved[1] <= 1.2 * reserved[0]


@needs_gpu
def test_on_a_gpu_a_run_resumed_within_an_epoch_gives_the_same_losses(
    small_args, gpu, tmp_path, stop_after, monkeypatch
):
    monkeypatch.setattr(archs, "build", with_dropout)
    losses = []
    for stop in (None, 27):
        folder = tmp_path / str(stop)
        args = small_args(gpu=0, prune_iterations=2, augment=True, output_dir=folder)
        if stop:
            stop_after(stop, args)
        main.main(args)
        losses.append(losses_of(args).tolist())
    assert losses[0] == losses[1]


class Waits(nn.Module):
    """A layer that waits for the device, which cannot be captured."""

    def forward(self, x):
        return x * (1.0 if x.sum().item() > -1e9 else 0.0)


class Counts(nn.Module):
    """A layer that depends on how often it was called, of which a graph knows nothing."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.calls * x


@needs_gpu
@pytest.mark.parametrize(
    ("layer", "reason"), [(Waits, "stream is capturing"), (Counts, "the loss changes")]
)
def test_an_iteration_that_a_graph_cannot_repeat_runs_without_one(
    layer, reason, small_args, gpu, monkeypatch, capsys
):
    monkeypatch.setattr(
        archs, "build", lambda *_: nn.Sequential(nn.Flatten(), layer(), nn.Linear(784, 10))
    )
    main.main(small_args(gpu=0, prune_iterations=1))
    assert re.search(f"running without a CUDA graph: .*{reason}", capsys.readouterr().out)


def test_bfloat16_learns_and_keeps_weights_in_float32(small_args, train_round):
    args = small_args(end_iter=4, amp=True)
    model = main.new_model(args, 0)
    outputs = []
    model.register_forward_hook(lambda layer, _, y: outputs.append((layer.training, y.dtype)))
    state = train_round(args, model, trial_data(args))
    assert set(outputs) == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert state.rows[-1][-1]["test_accuracy"] > 80
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
