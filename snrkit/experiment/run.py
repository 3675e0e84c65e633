"""The run directory: one experiment's configuration, environment, log, checkpoints, samples, measurements and scores.

Every write is a temporary file, then a rename; one process group at a time may write (lock.py). To resume anything, run
the same command again. Names of samplers hold no `@`, so that what follows one in a file's name meets no other sampler.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """Where things lie below `path`."""

    path: Path

    @property
    def config(self) -> Path:
        """The experiment as resolved."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """What it was trained with."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.path / "train.jsonl"

    def logger(self, kind: str) -> Path:
        """Which log of a logger is the run's."""
        return self.path / "loggers" / f"{kind}.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def damaged(self) -> Path:
        """Where damaged files are put aside, by their places."""
        return self.path / "damaged"

    @property
    def snapshots(self) -> Path:
        """Weights and averages alone, kept for averaging."""
        return self.path / "snapshots"

    def averages(self, name: str) -> Path:
        """What average made under a name, by images seen."""
        return self.path / "averages" / name

    def samples(self, sampler: str) -> Path:
        """Folder of the images of a sampler."""
        return self.path / "samples" / sampler

    def shift(self, sampler: str, suffix: str = ".json") -> Path:
        """What measure-shift wrote for a sampler."""
        return self.path / "shift" / f"{sampler}{suffix}"

    def probe_picture(self, sampler: str, probe: str) -> Path:
        """What measure-shift drew of what one probe found."""
        return self.shift(sampler, f"@{probe}.png")

    @property
    def estimator(self) -> Path:
        """The estimator of levels."""
        return self.path / "estimator"

    def tuned(self, sampler: str, suffix: str = ".json") -> Path:
        """What tune wrote for a sampler."""
        return self.path / "tune" / f"{sampler}{suffix}"

    def fit(self, key: str) -> Path:
        """The coefficients of a sampler, fitted to the network's flow."""
        return self.path / "fits" / f"{key}.json"

    def designed(self, sampler: str) -> Path:
        """The experiment with a sampler that snrkit design made."""
        return self.path / "design" / f"{sampler}.yaml"

    def certificate(self, sampler: str, suffix: str = ".json") -> Path:
        """What snrkit certify wrote for a sampler."""
        return self.path / "certify" / f"{sampler}{suffix}"

    def candidate(self, sampler: str, candidate: str) -> Path:
        """What certify keeps of one that it tried, to go on from."""
        return self.path / "certify" / sampler / f"{candidate}.json"

    def comparison(self, suffix: str = ".json") -> Path:
        """What compare wrote."""
        return self.path / f"compare{suffix}"

    def compared(self, sampler: str) -> Path:
        """What compare keeps of one row, to go on from."""
        return self.path / "compare" / f"{sampler}.json"

    @property
    def compared_times(self) -> Path:
        """What compare keeps of its rounds of timing."""
        return self.path / "compare" / "times" / "rounds.json"

    def compared_samples(self, sampler: str) -> Path:
        """The images of one row."""
        return self.path / "compare" / "samples" / sampler

    def metrics(self, sampler: str) -> Path:
        """What eval-fid wrote for a sampler."""
        return self.path / "metrics" / f"{sampler}.json"

    def curve(self, sampler: str) -> Path:
        """What eval-fid --checkpoints wrote for a sampler."""
        return self.path / "metrics" / f"{sampler}@checkpoints.json"

    def samples_at(self, sampler: str, images: int) -> Path:
        """Folder of the images of a sampler with the weights as of `images`."""
        return self.path / "samples" / f"{sampler}@{images:09d}"

    def report(self, suffix: str) -> Path:
        """The report."""
        return self.path / f"report{suffix}"
