"""Experiments that travel with snrkit: `demo`, which commands take by its name, and what `snrkit init` begins with."""

from pathlib import Path

DEMO = Path("demo")
STARTERS = Path(__file__).parents[1] / "starters"


def is_demo(what: Path) -> bool:
    """Whether the experiment that travels with snrkit is meant, as nothing here has its name."""
    return what == DEMO and not what.exists()


def file_of(config: Path) -> Path:
    """The file of an experiment that was named."""
    return STARTERS / "demo.yaml" if is_demo(config) else config
