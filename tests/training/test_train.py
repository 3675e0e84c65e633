"""Training: what a step does, what it survives, and resuming bit for bit."""

import json
import random
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from snrkit.base.distributed import World
from snrkit.base.errors import SnrkitError
from snrkit.base.signals import Stop
from snrkit.checkpoints.ours import list_checkpoints
from snrkit.commands.train import _asked
from snrkit.diffusion.denoiser import EdmPrecondition, NoPrecondition
from snrkit.diffusion.level import broadcast
from snrkit.diffusion.prediction import X0, Eps, FlowVelocity
from snrkit.diffusion.process import Edm, Flow, Vp
from snrkit.experiment.experiment import parse_experiment
from snrkit.experiment.opening import open_experiment
from snrkit.training.clipping import GlobalNorm
from snrkit.training.config import TrainConfig
from snrkit.training.ema import Average, HalfLife
from snrkit.training.holdout import held_out_loss
from snrkit.training.level_samplers import LogNormal, UniformTime
from snrkit.training.objective import Objective
from snrkit.training.perturb import Ciop, MixFlow
from snrkit.training.randomness import Plan
from snrkit.training.train import make_optimizer, make_state, train
from snrkit.training.weighting import EdmWeighting, Simple
from tests.opened import open_network, open_task
from tests.small import SMALL, snrkit, started, write_config

WORLD = World(0, 1, torch.device("cpu"))
TIMES = ("seconds", "images_per_second", "checksum")


def opened(**changes):
    """(task, fresh network) of the small experiment with changes to `train`."""
    plain = {**SMALL["network"], "dropout": 0.0, "augment": False}
    content = {**SMALL, "network": plain, "train": {**SMALL["train"], "augment": None, "images": 640, **changes}}
    found = open_experiment(parse_experiment(content, "small"), WORLD)
    return open_task(found), open_network(found)


def trained(**changes):
    """The state after training."""
    task, network = opened(**changes)
    state = make_state(task, network)
    return state, list(train(task, state))


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.network.parameters()])


def test_a_step_is_adamw_on_the_mean_loss_of_the_batch():
    """Two steps by hand - loss of the whole batch, clip, AdamW - give the same weights."""
    task, network = opened(images=128, decay="linear")
    reference = opened()[1]
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    from snrkit.diffusion.prediction import Cond

    for step in range(2):
        draws = task.plan().draw(step, range(4))
        rows = torch.tensor([task.train[p] for p in draws.positions])
        labels = torch.where(draws.label_drop < 0.1, -1, task.dataset.labels[rows])
        logsnr = task.objective.logsnr(draws.level)
        x0, blind = task.dataset.x0(rows.tolist()), draws.noise_drop < 0.1
        error = task.objective.output_error(reference, x0, draws.noise, logsnr, blind, Cond(labels=labels))
        for group in optimizer.param_groups:
            group["lr"] = task.config.lr_at(64 * step)
        optimizer.zero_grad()
        (task.objective.weight(logsnr).float() * error).mean().backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
    state = make_state(task, network)
    list(train(task, state))
    by_hand = torch.cat([p.detach().flatten() for p in reference.parameters()])
    torch.testing.assert_close(weights(state), by_hand, rtol=1e-5, atol=1e-7)


def test_accumulation_changes_only_the_order_of_additions():
    """Four micro-batches give the weights of one batch to float tolerance."""
    whole, parts = trained()[0], trained(accumulate=4)[0]
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-3, atol=2e-5)


def test_training_lowers_the_loss_and_the_held_out_loss():
    """On the mixture the loss falls by more than a fifth in 90 steps, on held-out images too."""
    task, network = opened(images=5760)
    before = held_out_loss(task, network)
    state = make_state(task, network)
    steps = list(train(task, state))
    after = held_out_loss(task, state.network)
    assert sum(s.loss for s in steps[-10:]) < 0.8 * sum(s.loss for s in steps[:10])
    assert sum(after.loss) < 0.8 * sum(before.loss)
    assert before.logsnr == after.logsnr == sorted(after.logsnr)
    assert held_out_loss(task, state.network) == after


def test_the_held_out_split_is_never_trained_on():
    """Indices drawn in training are disjoint from the held-out ones."""
    task, _ = opened()
    drawn = {task.train[p] for step in range(50) for p in task.plan().draw(step, range(4)).positions.tolist()}
    assert drawn.isdisjoint(task.held)
    assert len(task.held) > 10


def poisoned(task, network, when):
    """The task with a dataset that gives NaN in the steps for which `when` says so (-1: to whoever else asks)."""
    from dataclasses import replace

    slices = range(task.config.batch // task.config.slice)
    drawn = {tuple(task.images(task.plan().draw(step, slices)).tolist()): step for step in range(40)}

    def pixels(indices):  # asked for ahead, in any order
        images = task.dataset.pixels(indices)
        return images * torch.nan if when(drawn.get(tuple(indices), -1)) else images

    broken = replace(task, dataset=replace(task.dataset, pixels=pixels))
    return broken, make_state(broken, network)


def test_a_non_finite_step_is_skipped_and_named():
    """The weights, moments and averages do not change in it, and training goes on."""
    task, network = opened(images=320)
    broken, state = poisoned(task, network, lambda step: step == 2)
    before = None
    for step in train(broken, state):
        now = weights(state).clone()
        assert step.skipped == (step.step == 3)
        if step.skipped:
            assert torch.equal(now, before)
            assert len(step.logsnr) == 64
        before = now
    assert torch.isfinite(weights(state)).all()
    assert (state.step, state.images) == (5, 320)


def test_ten_non_finite_steps_in_a_row_stop_training():
    """Nine are survived; the tenth ends with the step, images and levels in one sentence."""
    task, network = opened(images=1280)
    broken, state = poisoned(task, network, lambda step: step < 9)
    assert len(list(train(broken, state))) == 20
    broken, state = poisoned(task, network, lambda step: step >= 3)
    with pytest.raises(SnrkitError, match=r"10 steps in a row, the last at step 13 \(832 images, logsnr"):
        list(train(broken, state))


@pytest.mark.parametrize(("decay", "values"), [
    ("constant", [0.5, 1, 1, 1]), ("linear", [0.5, 1, 0.5, 0]), ("cosine", [0.5, 1, 0.5, 0]),
    ("rsqrt", [0.5, 1, 0.8165, 0.5774]),
])  # fmt: skip
def test_learning_rate_schedules(decay, values):
    """Warm-up by images, then the decay from `decay_from` to `images`."""
    config = TrainConfig(images=600, batch=50, lr=1.0, warmup=100, decay=decay, decay_from=200 * (decay != "constant"))
    found = [config.lr_at(images) for images in (0, 200, 400, 600)]
    if decay == "rsqrt":
        found = [config.lr_at(images) for images in (0, 200, 300, 600)]
    assert found == pytest.approx(values, abs=1e-4)


def test_ema_has_its_half_life():
    """After one half-life a unit step in the weights is half-way in; the ramp shortens it early on."""
    network = torch.nn.Linear(1, 1, bias=False)
    network.weight.data.zero_()
    average = Average(HalfLife(half_life=1000, ramp=None), network)
    network.weight.data.fill_(1.0)
    for step in range(20):
        average.update(50 * step, 50)
    assert float(average.tensors["weight"]) == pytest.approx(0.5, rel=1e-5)
    assert HalfLife(half_life=1000, ramp=0.05).beta(2000, 50) == pytest.approx(0.5**0.5)
    assert HalfLife(half_life=1000, ramp=0.05).beta(0, 50) == 0
    assert HalfLife(half_life=1000, ramp=0.05).beta(10**9, 50) == pytest.approx(0.5**0.05)


@pytest.mark.parametrize(
    ("optimizer", "plain"),
    [
        ("adamw", lambda w: torch.optim.AdamW(w, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)),
        ("adam", lambda w: torch.optim.Adam(w, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)),
        ("sgd", lambda w: torch.optim.SGD(w, lr=0.01, momentum=0.9, weight_decay=0.1)),
    ],
)
def test_optimizers_are_torchs(optimizer, plain):
    """Three steps on one gradient give the weights of torch's own optimizer, unfused."""
    networks = [torch.nn.Linear(3, 2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    config = TrainConfig(images=1, lr=0.01, weight_decay=0.1, optimizer=optimizer)
    optimizers = make_optimizer(config, list(networks[0].parameters())), plain(networks[1].parameters())
    for network, made in zip(networks, optimizers, strict=True):
        for step in range(3):
            for parameter in network.parameters():
                parameter.grad = torch.sin(torch.arange(parameter.numel()) + step).reshape(parameter.shape)
            made.step()
    torch.testing.assert_close(networks[0].state_dict(), networks[1].state_dict(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("process", [{"kind": "vp"}, {"kind": "flow"}, {"kind": "edm"}], ids=lambda p: p["kind"])
def test_under_edm_preconditioning_all_targets_are_one_training(process):
    """With the unit loss on F, from a last layer of 0, five targets give one network up to the sign of its output."""
    ends = {}
    for kind in ("x0", "eps", "v", "flow", "score"):
        plain = {**SMALL["network"], "dropout": 0.0, "augment": False}
        train_part = {**SMALL["train"], "augment": None, "images": 640, "clip": None}
        content = {**SMALL, "process": process, "target": {"kind": kind}, "network": plain, "train": train_part}
        found = open_experiment(parse_experiment(content, "small"), WORLD)
        state = make_state(open_task(found), open_network(found))
        list(train(open_task(found), state))
        ends[kind] = {name: p.detach() for name, p in state.network.named_parameters()}
    assert float(ends["x0"]["conv_out.weight"].abs().max()) > 1e-3
    for kind, ours in ends.items():
        side = torch.sign((ours["conv_out.weight"] * ends["x0"]["conv_out.weight"]).sum())
        for name, weight in ends["x0"].items():
            factor = side if name.startswith("conv_out") else 1.0
            torch.testing.assert_close(factor * ours[name], weight, rtol=0, atol=2e-4, msg=f"{kind} {name}")
        assert float(side) == (1.0 if kind in ("x0", "score") else -1.0)  # the sign of a sigma - b alpha


def test_a_setting_of_another_optimizer_is_refused():
    """momentum with adam, betas with sgd."""
    with pytest.raises(ValueError, match="momentum has no effect"):
        TrainConfig(images=1, momentum=0.5)
    with pytest.raises(ValueError, match="adam_betas has no effect"):
        TrainConfig(images=1, optimizer="sgd", adam_betas=(0.5, 0.9))


def test_a_number_is_the_global_norm_and_none_bounds_nothing():
    """`clip: 0.1` as before; the step says the norm before and after, and the log the share of clipped steps."""
    assert TrainConfig(images=1, clip=0.1).clip == GlobalNorm(norm=0.1)
    assert TrainConfig(images=1, clip=None).clip is None
    bounded = trained(images=640, clip=0.05)[1]
    assert all(step.clipped_norm == pytest.approx(min(step.grad_norm, 0.05), rel=1e-4) for step in bounded)
    assert all(step.clipped_norm == step.grad_norm for step in trained(images=640, clip=None)[1])


def test_bfloat16_trains_with_float32_weights():
    """Under autocast the losses are those of float32 to a twentieth; weights, averages and moments stay float32."""
    from dataclasses import replace

    task, network = opened(images=1280)
    state = make_state(replace(task, autocast=torch.bfloat16), network)
    losses = [step.loss for step in train(replace(task, autocast=torch.bfloat16), state)]
    exact = [step.loss for step in trained(images=1280)[1]]
    assert losses != exact
    assert sum(losses[-10:]) == pytest.approx(sum(exact[-10:]), rel=0.05)
    tensors = [*state.network.parameters(), *state.averages["ema-500"].tensors.values()]
    tensors += [v for entries in state.optimizer.state.values() for v in entries.values()]
    assert all(t.dtype == torch.float32 for t in tensors)


def test_the_log_can_carry_the_largest_attention_logit():
    """A transformer's steps report it every `watch_every` images and not between."""
    task, _ = opened(images=256)
    from snrkit.networks import Dit, make_network

    state = make_state(task, make_network(Dit(dim=16, depth=1, heads=1, classes=4), (1, 8, 8), 0))
    steps = list(train(task, state, watch_every=128))
    assert [step.logit is None for step in steps] == [True, False, True, False]


def test_resuming_under_channels_last_equals_going_on():
    """The optimizer's moments come back in the memory layout of their weights."""
    from dataclasses import replace

    from snrkit.training.train import restore, state_numbers, state_tensors

    task, network = opened(images=640)
    task = replace(task, channels_last=True)
    whole = make_state(task, network)
    steps = train(task, whole)
    for _ in range(5):
        next(steps)
    kept = {n: {k: v.detach().clone().contiguous() for k, v in ts.items()} for n, ts in state_tensors(whole).items()}
    whole.settle(task)
    numbers, images = state_numbers(whole), whole.images
    list(steps)
    resumed = make_state(task, opened()[1])
    restore(resumed, images, kept, numbers)
    list(train(task, resumed))
    assert torch.equal(weights(whole), weights(resumed))


def log_without_times(path):
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in path.read_text().splitlines()
    ]


def final_files(run):
    path = list_checkpoints(run / "checkpoints")[-1]
    return {file.name: load_file(file) for file in sorted(path.glob("*.safetensors"))}


LEARNED = {"importance": {"bins": 8}, "balance": {"bins": 8}, "uncertainty": {}}
OTHER_KNOBS = {  # beside the small experiment's own
    "optimizer": "sgd", "lr": 0.01, "clip": {"kind": "agc", "ratio": 0.1}, "snapshot_every": 960,
    "averages": [{"kind": "power", "width": 0.05}, {"kind": "ema_decay", "decay": 0.99}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("knobs", "averages"),
    [
        ({}, ["ema-500", "ema-1000"]),
        (OTHER_KNOBS | LEARNED, ["power-0.05", "ema-decay-0.99", "learned"]),
    ],
    ids=["usual", "every-other"],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(tmp_path, knobs, averages):
    """SIGKILL at random moments, then the same command: weights, averages, moments and log equal bit for bit."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, train={**SMALL["train"], **knobs})
    snrkit(tmp_path / "whole", "train", "-q")
    rng, folder, kills = random.Random(1), tmp_path / "killed", 0
    checkpoints = folder / "runs" / "small" / "checkpoints"
    while kills < 2:
        seen = len(list(checkpoints.glob("*"))) and max(
            int(p.name) for p in list_checkpoints(checkpoints) or [checkpoints / "0"]
        )
        process = started(folder, "train", "-q")
        while process.poll() is None:
            newest = max((int(p.name) for p in list_checkpoints(checkpoints)), default=0)
            if newest > seen:
                time.sleep(rng.uniform(0, 0.15))
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
        kills += 1
    interrupted = max(int(p.name) for p in list_checkpoints(checkpoints))
    assert 0 < interrupted < 1920
    snrkit(folder, "train", "-q")
    whole, killed = (final_files(tmp_path / name / "runs" / "small") for name in ("whole", "killed"))
    assert set(whole) == {f"{part}.safetensors" for part in ("network", "optimizer", *averages)}
    snapshots = [
        {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("snapshots/*/*")}
        for name in ("whole", "killed")
    ]
    assert snapshots[0] == snapshots[1]
    assert len(snapshots[0]) == (2 * 4 if "snapshot_every" in knobs else 0)
    for file, tensors in whole.items():
        assert tensors.keys() == killed[file].keys()
        for key, tensor in tensors.items():
            assert torch.equal(tensor, killed[file][key]), (file, key)
    logs = [log_without_times(tmp_path / name / "runs" / "small" / "train.jsonl") for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert not list(checkpoints.glob(".*.tmp"))


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, sign, code):
    """The step is finished, the state saved, and the same command goes on from there; the code is the signal's."""
    write_config(tmp_path, train={**SMALL["train"], "images": 200_000, "save_every": 100_000})
    process = started(tmp_path, "train", "-q")
    log = tmp_path / "runs" / "small" / "train.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "all is saved. To go on, run the same command again" in " ".join(errors.split())
    (path,) = list_checkpoints(tmp_path / "runs" / "small" / "checkpoints")
    assert int(path.name) % 64 == 0


def test_input_perturbation_on_pure_noise_learns_one_over_one_plus_gamma_squared():
    """Told to say eps of eps + gamma xi, a linear network's best slope is 1/(1 + gamma^2) (Ning et al. 2023)."""
    process, gamma, count = Vp(), 0.5, 40_000
    objective = Objective(process, Eps(), NoPrecondition(), UniformTime(), Simple(), 0.5)
    draws = torch.Generator().manual_seed(0)
    eps, extra = (torch.randn(count, 1, 1, 1, generator=draws) for _ in range(2))
    logsnr = torch.full((count,), -15.0, dtype=torch.float64)
    told = torch.zeros(count, dtype=torch.bool)

    def loss(slope):
        network = lambda x, time, cond: slope * x  # noqa: E731
        return float(objective.output_error(
            network, torch.zeros_like(eps), eps, logsnr, told, None, beyond=gamma * extra
        ).mean())  # fmt: skip

    low, middle, high = loss(0.0), loss(0.5), loss(1.0)  # a parabola in the slope
    best = 0.5 + 0.25 * (low - high) / (low - 2 * middle + high)
    assert best == pytest.approx(1 / (1 + gamma**2), rel=0.02)


def test_input_perturbation_changes_what_is_shown_not_what_is_asked():
    """With EDM's preconditioning y = c_skip x + c_out F still has to equal x0, on the perturbed x."""
    process, target = Edm(), X0()
    objective = Objective(process, target, EdmPrecondition(), LogNormal(), EdmWeighting(), 0.5)
    x0, eps, extra = torch.randn(3, 4, 1, 2, 2)
    logsnr = torch.tensor([-2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    level = process.level(logsnr)
    c = EdmPrecondition().coefficients(level, target, "ve", 0.5)
    alpha, sigma = level.scales(x0)
    shown = alpha * x0 + sigma * (eps + extra)
    wanted = (x0 - broadcast(c.c_skip, x0) * shown) / broadcast(c.c_out, x0)
    seen = []

    def network(x, time, cond):
        seen.append(x)
        return wanted

    told = torch.zeros(4, dtype=torch.bool)
    error = objective.output_error(network, x0, eps, logsnr, told, None, beyond=extra)
    assert float(error.max()) < 1e-9
    torch.testing.assert_close(seen[0], broadcast(c.c_in, x0) * shown)


def test_perturbation_leaves_all_other_draws_as_they_were():
    """Positions, levels, drops and noise of a step are the same bits with it and without."""
    plain, *more = (Plan(3, 64, 16, 100, (1, 4, 4), extras).draw(5, range(4)) for extras in (None, 0, 1, 2))
    for name in ("positions", "level", "label_drop", "noise_drop", "flip", "augment", "noise"):
        assert all(torch.equal(getattr(plain, name), getattr(one, name)) for one in more)
    assert plain.extra is None
    assert [one.extra.shape[1] for one in more] == [0, 1, 2]
    assert torch.equal(more[1].extra[:, 0], more[2].extra[:, 0])
    assert not torch.equal(more[2].extra[:, 0], more[2].extra[:, 1])


def test_perturbed_training_differs_and_repeats():
    """gamma acts on the weights, and the same seed gives the same bits."""
    plain, one, two = trained()[0], trained(perturb={"gamma": 0.3})[0], trained(perturb={"gamma": 0.3})[0]
    assert torch.equal(weights(one), weights(two))
    assert not torch.allclose(weights(plain), weights(one))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_ciop_asks_for_noise_of_its_own(share):
    """Where it strikes, shown and asked noise have variance 1 + gamma^2 and covariance 1; elsewhere they are one."""
    count, draws = 200_000, torch.Generator().manual_seed(0)
    eps, extra = torch.randn(count, 1, 1, 1, generator=draws), torch.randn(count, 2, 1, 1, 1, generator=draws)
    chance, told = torch.rand(count, generator=draws, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    found = Ciop(gamma=0.5, share=share).shown(eps, extra, chance, told, Vp())
    struck, shown = chance < share, (found.eps + found.beyond).flatten()
    moments = torch.cov(torch.stack([shown[struck], found.eps.flatten()[struck]]))
    torch.testing.assert_close(moments, torch.tensor([[1.25, 1.0], [1.0, 1.25]]), rtol=0, atol=0.02)
    assert torch.equal(shown[~struck], eps.flatten()[~struck])
    assert torch.equal(found.eps[~struck], eps[~struck])
    assert torch.equal(found.logsnr, told)


def test_mixflow_shows_the_noisier_side_and_asks_for_the_velocity():
    """m is uniform on [(1 - reach) t, t]; the network sees the line at m, is told t, and eps - x0 satisfies it."""
    flow, count, draws = Flow(), 50_000, torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, count, 1, 1, 2, generator=draws)
    t = torch.rand(count, generator=draws, dtype=torch.float64) * 0.98 + 0.01  # 1 is the image
    told = flow.logsnr(1 - t)
    found = MixFlow(reach=0.8).shown(eps, eps[:, None][:, :0], torch.rand(count, generator=draws), told, flow)
    m = 1 - flow.time(found.logsnr)
    assert bool(((m <= t + 1e-9) & (m >= 0.2 * t - 1e-9)).all())
    assert float((m / t).mean()) == pytest.approx(0.6, abs=0.005)
    assert float((m / t).std()) == pytest.approx(0.8 / 12**0.5, abs=0.005)
    seen = []

    def network(x, time, cond):
        seen.append((x, time))
        return eps - x0

    objective = Objective(flow, FlowVelocity(), NoPrecondition(), UniformTime(), Simple(), 0.5)
    error = objective.output_error(
        network, x0, eps, told, torch.zeros(count, dtype=torch.bool), None, stands=found.logsnr
    )
    assert float(error.max()) < 1e-9
    line = m.float()[:, None, None, None]
    torch.testing.assert_close(seen[0][0], line * x0 + (1 - line) * eps, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0][1].double(), 1 - t, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("perturb", [{"kind": "ciop"}, {"kind": "mixflow"}], ids=lambda p: p["kind"])
def test_perturbed_trainings_run_and_differ(perturb):
    """Each acts on the weights; mixflow is refused off the straight line."""
    plain = {**SMALL["network"], "dropout": 0.0, "augment": False}

    def end(**changes):
        part = {**SMALL["train"], "augment": None, "images": 320, **changes}
        content = {**SMALL, "process": {"kind": "flow"}, "target": {"kind": "flow"}, "network": plain, "train": part}
        found = open_experiment(parse_experiment(content, "small"), WORLD)
        state = make_state(open_task(found), open_network(found))
        list(train(open_task(found), state))
        return weights(state)

    assert not torch.allclose(end(), end(perturb=perturb))
    if perturb["kind"] == "mixflow":
        with pytest.raises(SnrkitError, match="straight line of flow matching, not edm"):
            opened(perturb=perturb)


def test_every_step_says_whether_a_process_was_asked_to_stop():
    """From the step that begins after it was asked on; and nothing else is changed by that."""
    task, network = opened(images=320)
    state, stop = make_state(task, network), Stop()
    steps = train(task, state, stop=stop)
    first = next(steps)
    stop.asked = True
    assert [first.asked, *(step.asked for step in steps)] == [False, True, True, True, True]
    assert torch.equal(weights(state), weights(trained(images=320)[0]))


@pytest.mark.parametrize(("size", "device", "at"), [(1, "cpu", "now"), (2, "cpu", "step"), (2, "cuda", "before")])
def test_processes_end_after_a_step_of_which_all_know_the_same(size, device, at):
    """One alone at once; many by what a step exchanged, whose numbers the host has without waiting for the device."""
    world, stop = World(0, size, torch.device(device)), Stop()
    steps = {"step": SimpleNamespace(asked=False), "before": SimpleNamespace(asked=False)}
    assert not _asked(world, stop, steps["step"], steps["before"])
    assert not _asked(world, stop, steps["step"], None)
    for name, step in steps.items():
        step.asked = True
        assert _asked(world, stop, steps["step"], steps["before"]) == (name == at)
        step.asked = False
    stop.asked = True
    assert _asked(world, stop, steps["step"], None) == (at == "now")
