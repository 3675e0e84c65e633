"""Norms of single images' gradients, level by level, as training goes on: python gradients.py RUNS > gradients.md.

Of the runs of gradients.yaml: of the loss as training weighs it, in all weights of the network, not averaged, on 64
training images; the least and the most of the seeds.
"""

import sys
from pathlib import Path

import torch

from snrkit.base.distributed import World
from snrkit.commands.analyze_run import gradient_images, level_gradients, loaded_network
from snrkit.commands.sweep import Trial, load_sweep, sweep_trials
from snrkit.experiment.opening import open_experiment, open_model, open_task
from snrkit.experiment.run import Run
from snrkit.reports.blocks import Table, markdown

HERE = Path(__file__).parent
SEEN, LEVELS = (1_024, 10_240, 40_960), (-8.0, -4.0, 0.0, 4.0, 8.0)


def norms(trial: Trial, runs: Path) -> list[list[float]]:
    """Root mean square norm by checkpoint and level."""
    opened = open_experiment(trial.experiment, World(0, 1, torch.device("cpu")))
    training, setting = trial.experiment.training, opened.setting
    objective, images = open_task(training, setting).objective, gradient_images(setting)
    weights = objective.weight(torch.tensor(LEVELS, dtype=torch.float64)).tolist()
    rows = []
    for seen in SEEN:
        network = loaded_network(training, setting, open_model(opened, Run(runs / trial.experiment.name), seen))
        own = list(network.parameters())
        found = [level_gradients(objective, network, images, level, own).norm for level in LEVELS]
        rows.append([weight * norm for weight, norm in zip(weights, found, strict=True)])
    return rows


def main(runs: Path) -> str:
    """Markdown."""
    sweep = load_sweep(HERE / "gradients.yaml")
    known: dict[str, list[list[list[float]]]] = {}
    for trial in sweep_trials(sweep, "gradients"):
        known.setdefault(trial.arm, []).append(norms(trial, runs))
    rows = []
    for arm, seeds in known.items():
        for at, seen in enumerate(SEEN):
            ranges = (sorted(seed[at][level] for seed in seeds) for level in range(len(LEVELS)))
            rows.append((arm, f"{seen:,}", *(f"{r[0]:.2g} to {r[-1]:.2g}" for r in ranges)))
    head = ("target", "images", *(f"logsnr {level:+.0f}" for level in LEVELS))
    return markdown(Table(head, rows), Path())


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
