"""Golden bits: a refactoring changes no number, and this says so.

    python tests/golden.py                        compare this tree with the commit in GOLDEN, bit for bit
    python tests/golden.py --against COMMIT       with another
    python tests/golden.py --freeze FILE          only write what this tree makes

Both trees are run on the same machine by the same interpreter, as bits differ between processors. What is compared:

    every solver and every correction on ddpm, edm and flow: states of an exact denoiser, float64
    three short trainings that together turn every knob: checkpoints, averages and logs
    the images, scores, shifts with all probes, comparison, tuning, sweep, averages, analysis of these

A leaf is one tensor or one number of a file. Leaves that the other tree lacks are counted, not compared. Whatever
differs must stand under Numerics in CHANGELOG.md and in CHANGED here.
"""

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = "3f0a976"
VOLATILE = re.compile(
    r"(^|/)(version|numerics|seconds|images_per_second|seconds_per_image|overhead|clock|command|git_commit|made_with"
    r"|page|written|yaml|checksum|facts/format|facts/shift/[a-z]+_[a-z]+|format|snrkit|packages|key|hash)(/|$)"
)
CHANGED = (  # patterns of leaves that CHANGELOG.md lists under Numerics, and facts that are no numbers
    r"/analysis/(index\.json/facts|run-)",  # numerics 6: the noise of an analysis has a stream of its own
    r"/(features_key|facts/features)$",  # of tensors, not of the file that the cache keeps them in
    r"/named/\d+/0$",  # of files of spectra and estimators, which carry a checksum now
    r"tune/.*\.jsonl/\d+/result$",  # a list now, of the same numbers
    r"sweep/.*\.json/facts/model$",  # null, in the key of a row: a file without a model no longer says so
)

STEPS = 6
MIXTURE = {"kind": "mixture", "shape": [1, 8, 8], "count": 400, "components": 4}
UNET = {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "classes": 4}
SHORT = {"images": 640, "batch": 64, "warmup": 128, "save_every": 320, "log_every": 128, "holdout_every": 320}
COMMON = {
    "sample": {"seeds": "0-23", "batch": 12},
    "shift": {"images": 24, "batch": 12, "bootstrap": 100, "window_images": 8, "horizon_images": 16, "audit_pairs": 128,
              "estimator": {"images": 1280, "batch": 64, "channels": 8},
              "probes": ["window", "horizon", "amplification", "audit", "estimator", "why"]},
    "metrics": {"features": "pixels", "pixel_components": 4, "ranges": 2},
    "tune": {"seeds": "1000-1023", "trials": 3},
    "compare": {"timed_images": 2, "rounds": 1},
}  # fmt: skip


def grid(kind="karras", steps=4):
    return {"kind": kind, "steps": steps}


SOLVERS = {
    "euler": {}, "heun": {}, "ancestral": {}, "analytic_dpm": {}, "churn": {}, "dpmpp_2m": {}, "dpmpp_3m": {},
    "unipc": {}, "ipndm": {}, "ipndm_v": {},
}  # fmt: skip
CORRECTIONS = {
    "dcw": {"low": 0.05, "high": 0.03}, "pixel": {"kind": "dcw", "pixel": 0.02}, "epsilon_scaling": {"scale": 1.02},
    "time_shift": {"window": 0.6, "unit": "nats"}, "cfg": {"weight": 0.7}, "noise_awareness": {"weight": 0.5},
    "noise_awareness_classifier": {"weight": 0.3}, "autoguidance": {"weight": 0.4, "average": "network"},
    "clip_x0": {}, "dynamic_threshold": {}, "x0_rescale": {},
}  # fmt: skip


def samplers(where, leave=(), alone="karras"):
    """A sampler for every solver, and for every correction on Euler and on Heun."""
    found = {}
    for name, options in SOLVERS.items():
        found[name.replace("_", "-")] = {"grid": grid(alone), "solver": {"kind": name, **options}}
    for name, options in CORRECTIONS.items():
        if name not in leave:
            correction = {"kind": name, **options}
            found[f"c-{name.replace('_', '-')}"] = {
                "grid": grid(alone), "solver": {"kind": "euler"}, "corrections": [correction],
            }  # fmt: skip
    return found


EXPERIMENTS = {
    "edm": {
        "data": MIXTURE, "process": {"kind": "edm"}, "target": {"kind": "x0"}, "precondition": {"kind": "edm"},
        "levels": {"kind": "lognormal"}, "weighting": {"kind": "edm"},
        "network": {**UNET, "dropout": 0.1, "augment": True, "attention": [4], "head_channels": 8},
        "train": {**SHORT, "label_dropout": 0.1, "noise_dropout": 0.1, "augment": {"kind": "edm"}, "decay": "cosine",
                  "accumulate": 2, "importance": {"bins": 4}, "balance": {"bins": 4}, "uncertainty": {"features": 8},
                  "perturb": {"kind": "ddpm_ip", "gamma": 0.1}, "snapshot_every": 320, "weight_decay": 0.01,
                  "averages": [{"half_life": 500}, {"kind": "power", "width": 0.05}, {"kind": "power", "width": 0.1},
                               {"kind": "ema_decay", "decay": 0.9}]},
        "samplers": samplers("edm"),
    },
    "ddpm": {
        "data": {**MIXTURE, "sigma_data": "auto", "flip": True}, "process": {"kind": "ddpm"}, "target": {"kind": "eps"},
        "precondition": {"kind": "none"}, "levels": {"kind": "uniform_time"}, "weighting": {"kind": "min_snr"},
        "network": {"kind": "dit", "dim": 24, "depth": 2, "heads": 2, "classes": 4, "qk_norm": True},
        "train": {**SHORT, "label_dropout": 0.2, "noise_dropout": 0.2, "optimizer": "adam", "clip": {"kind": "agc"},
                  "decay": "rsqrt", "decay_from": 128, "perturb": {"kind": "ciop"}, "averages": [{"half_life": 500}]},
        "samplers": samplers("ddpm", alone="uniform_time"),
    },
    "flow": {
        "data": {**MIXTURE, "sigma_data": "auto"}, "process": {"kind": "flow"}, "target": {"kind": "v"},
        "precondition": {"kind": "edm"}, "levels": {"kind": "spectral"},
        "weighting": {"kind": "sigmoid", "bias": {"kind": "spectral", "at": 1.0}},
        "network": {"kind": "mlp", "dim": 24, "depth": 2, "classes": 4, "scalars": ["logsnr_noisy", "logsnr_clean"]},
        "train": {**SHORT, "label_dropout": 0.1, "noise_dropout": 0.1, "optimizer": "sgd", "lr": 0.01,
                  "clip": {"kind": "per_unit"}, "averages": [{"half_life": 500}]},
        "samplers": {
            **samplers("flow", leave=("epsilon_scaling", "time_shift"), alone="uniform_logsnr"),
            "spectral": {"grid": grid("spectral"), "solver": {"kind": "euler"}},
            "spectral-dcw": {"grid": grid("spectral"), "solver": {"kind": "dpmpp_2m"},
                             "corrections": [{"kind": "dcw", "low": 0.05}]},
            "scaled": {"grid": {**grid("spectral"), "scale": 1.5}, "solver": {"kind": "heun"}},
        },
    },
}  # fmt: skip
MEASURED = {
    "edm": ("euler", "churn", "ancestral", "c-dcw", "c-cfg"),
    "ddpm": ("euler", "analytic-dpm", "c-x0-rescale", "c-noise-awareness"),
    "flow": ("heun", "spectral-dcw", "c-pixel"),
}
UNMEASURED = {"flow": ["window", "horizon", "amplification", "audit", "estimator"]}  # why needs one grid for all


def experiment_file(folder, name):
    import yaml

    path = folder / f"{name}.yaml"
    content = {**EXPERIMENTS[name], **COMMON}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    kept = ("euler", "c-dcw") if name != "flow" else ("spectral", "spectral-dcw", "heun")
    few = {key: content["samplers"][key] for key in kept}
    (folder / f"{name}-few.yaml").write_text(yaml.safe_dump({**content, "name": name, "samplers": few}))
    return path


def commands(name):
    """What is run for one experiment, in order."""
    measured = [part for sampler in MEASURED[name] for part in ("--sampler", sampler)]
    probes = [] if name not in UNMEASURED else ["--set", f"shift.probes=[{', '.join(UNMEASURED[name])}]"]
    whole, few = ["--config", f"{name}.yaml"], ["--config", f"{name}-few.yaml"]
    yield ["train", *whole]
    yield ["fit-estimator", *whole]
    yield ["sample", *whole]
    yield ["measure-shift", *measured, *probes, *whole]
    yield ["eval-fid", *whole]
    yield (
        [
            "eval-fid",
            "--sampler",
            "euler",
            "--set",
            "metrics.features=classifier",
            "--set",
            "metrics.pixel_components=64",
            *few,
        ]
        if name == "ddpm"
        else None
    )
    yield ["analyze", *whole]
    yield ["report", *whole]
    yield ["compare", *few] if name != "ddpm" else None
    if name == "edm":
        yield ["average", "runs/edm", "--width", "0.08"]
        yield ["average", "runs/edm", "--decay", "0.9"]
        yield ["sample", "--sampler", "euler", "--set", "sample.average=posthoc-0.08", "--overwrite", *few]
    if name != "flow":
        for method in ("predicted", "gap", "fd"):
            yield ["tune", "--by", method, "--sampler", "c-dcw", *few]
    if name == "flow":
        yield ["analyze", "--spectrum", *whole]


SWEEP = {
    "base": "ddpm-few.yaml", "settings": ["train.images=320", "shift.probes=[]"], "seeds": [0, 1],
    "arms": {"plain": [], "v": ["target.kind=v"], "more": ["sample.average=network"]},
}  # fmt: skip


def run(folder, arguments):
    line = [sys.executable, "-m", "snrkit", *arguments]
    quiet = arguments[0] not in ("analyze", "average", "report", "export", "validate")
    runs = [] if arguments[0] in ("average", "export") else ["--runs", "runs"]
    done = subprocess.run(
        [*line, *(["-q"] if quiet else []), *runs], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"refused: {' '.join(arguments)}: {done.stderr.strip()[-600:]}", file=sys.stderr)
    return f"said/{' '.join(arguments)}", f"{done.returncode} {done.stderr.strip() if done.returncode else ''}"


def digest(content):
    return hashlib.blake2b(content, digest_size=10).hexdigest()


def flat(node, path):
    """(path, leaf) of nested plain data."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from flat(value, f"{path}/{key}")
    elif isinstance(node, list) and len(node) > 8 and all(isinstance(v, float | int | None) for v in node):
        yield path, digest(json.dumps(node).encode())
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from flat(value, f"{path}/{index}")
    else:
        yield path, repr(node)


def leaves_of_file(path, name):
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        yield from ((f"{name}/{key}", digest(value.tobytes())) for key, value in load_file(path).items())
    elif path.suffix == ".json":
        yield from flat(json.loads(path.read_text()), name)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text().splitlines()):
            yield from flat(json.loads(line), f"{name}/{number}")
    elif path.suffix == ".csv" or (path.suffix == ".png" and "/samples/" in f"/{name}"):
        yield name, digest(path.read_bytes())


def leaves_of_runs(folder):
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.name.startswith("."):
            name = re.sub(r"(sweep/[a-z]+)-[0-9a-f]{12}", r"\1", name)  # rows are named by their key
            name = name.replace("@checkpoints.json", "-checkpoints.json")  # as it was called at first
            yield from leaves_of_file(path, name)


def things():
    """Every class and function of the package by name, wherever it lies."""
    import snrkit

    found = {}
    for info in pkgutil.walk_packages(snrkit.__path__, "snrkit."):
        if re.search(r"__main__|\.cli|\.jobs|\.commands", info.name):  # a command may have a function's name
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") == info.name:
                found.setdefault(name, value)
    return found


class Sources:
    """What corrections open, made up."""

    def __init__(self, found, denoise, count):
        self.found, self.denoise, self.count = found, denoise, count

    def denoiser(self, *_, **__):
        return self.denoise

    def estimator(self, *_):
        return self

    def gradient(self, x, logsnr):
        return -0.1 * x

    def forward(self, levels):
        import torch

        values = torch.linspace(0.9, 0.5, len(levels), dtype=torch.float64)
        return self.found["ForwardStatistics"](values, values / 3)

    def spectral(self, asked):
        return None


def leaves_of_samplers():
    """Final and middle states of every solver with every correction, float64, by an exact denoiser."""
    import torch

    found = things()
    build = {"edm": found["Edm"](), "ddpm": found["Ddpm"](), "flow": found["Flow"]()}
    known = {v.model_fields["kind"].default: v for v in found.values()
             if isinstance(v, type) and hasattr(v, "model_fields") and "kind" in v.model_fields
             and v.model_fields["kind"].default in (*SOLVERS, *CORRECTIONS)
             and any(hasattr(v, hook) for hook in ("step", "wrap", "move", "after", "open"))}  # fmt: skip
    for where, process in build.items():
        draws = torch.Generator().manual_seed(7)
        means = torch.randn(3, 1, 4, 4, generator=draws, dtype=torch.float64)
        weaker = found["MixtureDenoiser"](
            process, means * 1.1, torch.full((3,), 0.09, dtype=torch.float64), torch.full((3,), 1 / 3).double(),
        )  # fmt: skip
        prior = process.snap(torch.linspace(-5, 5, 16, dtype=torch.float64))
        denoise = found["MixtureDenoiser"](
            process, means, torch.full((3,), 0.04, dtype=torch.float64), torch.full((3,), 1 / 3).double(), prior
        )
        logsnr = process.snap(torch.linspace(-6, 6, STEPS, dtype=torch.float64))
        clean = torch.tensor(float("inf"), dtype=torch.float64)
        levels = tuple(process.level(v) for v in (*logsnr, clean))
        first = torch.randn(4, 1, 4, 4, generator=draws, dtype=torch.float64)
        for solver_name in SOLVERS:
            for name, options in {"none": None, **CORRECTIONS}.items():
                noise = torch.Generator().manual_seed(11)
                sources = Sources(found, weaker, STEPS)
                solver = known[solver_name]()
                solver = solver.open(sources, levels) if hasattr(solver, "open") else solver
                chosen = []
                if options is not None:
                    kind = options.get("kind", name)
                    chosen = [known[kind](**{k: v for k, v in options.items() if k != "kind"})]
                    chosen = [c.open(sources, levels) if hasattr(c, "open") else c for c in chosen]
                cond = found["Cond"](labels=torch.zeros(4, dtype=torch.int64))
                x = first * levels[0].sigma
                key = f"exact/{where}/{solver_name}/{name}"
                try:
                    with torch.no_grad():
                        for step in found["sample"](
                            denoise, solver, levels, x, corrections=chosen, cond=cond,
                            noise=lambda t, g=noise: torch.randn(t.shape, generator=g, dtype=t.dtype),
                        ):  # fmt: skip
                            x = step.x_next
                    yield key, digest(x.numpy().tobytes())
                except found["SnrkitError"] as error:
                    yield key, f"refused: {type(error).__name__}"


def freeze(out):
    """All leaves of the tree that `snrkit` is imported from."""
    import yaml

    leaves = dict(leaves_of_samplers())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SNRKIT_CACHE"] = str(folder / "cache")
        for experiment in EXPERIMENTS:
            experiment_file(folder, experiment)
        for experiment in EXPERIMENTS:
            leaves |= dict(run(folder, arguments) for arguments in filter(None, commands(experiment)))
        (folder / "arms.yaml").write_text(yaml.safe_dump(SWEEP, sort_keys=False))
        leaves |= dict([run(folder, ["sweep", "arms.yaml"])])
        leaves |= dict(leaves_of_runs(folder / "runs"))
    out.write_text(json.dumps(leaves, indent=0))


def tree_of(commit, folder):
    subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(folder), commit], check=True,
                   capture_output=True)  # fmt: skip
    return folder


def frozen(tree, out):
    """The leaves of a tree, run by this interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    subprocess.run([sys.executable, __file__, "--freeze", str(out)], check=True, env=environment, cwd=out.parent)
    return json.loads(out.read_text())


def compare(before, after):
    """(how many are equal, those that differ, those that are gone, those that are new)."""
    volatile = {leaf for leaf in before.keys() | after.keys() if VOLATILE.search(leaf)}
    kept = before.keys() - volatile
    same = [leaf for leaf in kept if after.get(leaf) == before[leaf]]
    gone = sorted(leaf for leaf in kept if leaf not in after)
    differ = sorted(leaf for leaf in kept.difference(same, gone))
    return same, differ, gone, sorted(after.keys() - before.keys() - volatile)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default=GOLDEN)
    parser.add_argument("--freeze", type=Path)
    parser.add_argument("--before", type=Path, help="a file that --freeze wrote on this machine, in place of --against")
    chosen = parser.parse_args()
    if chosen.freeze:
        freeze(chosen.freeze.resolve())
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if chosen.before:
            before = json.loads(chosen.before.read_text())
        else:
            tree = tree_of(chosen.against, folder / "tree")
            before = frozen(tree, folder / "before.json")
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
        after = frozen(ROOT, folder / "after.json")
    same, differ, gone, new = compare(before, after)
    told = [leaf for leaf in (*differ, *gone) if any(re.search(pattern, leaf) for pattern in CHANGED)]
    wrong = [leaf for leaf in (*differ, *gone) if leaf not in set(told)]
    for leaf in wrong[:60]:
        print(f"{leaf}: {before[leaf]} became {after.get(leaf, 'absent')}")
    print(f"{len(same)} leaves equal, {len(told)} changed as Numerics says, {len(wrong)} differ, {len(new)} are new")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
