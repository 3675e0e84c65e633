"""What a command works on: a YAML file, a run directory or `demo`, as its first word or by --config.

`snrkit sample runs/mine` is `snrkit sample --config runs/mine/config.yaml --runs runs`, wherever it is called from.
`demo` is the experiment that travels with snrkit, with its model, unless a file or folder has that name.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from snrkit.base.errors import SnrkitError
from snrkit.base.starters import file_of, is_demo

ENDINGS = (".yaml", ".yml")
EXPERIMENT = "Which experiment"  # the group of options that say it, in the help of commands
WHAT = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(metavar="FILE|RUN", help="YAML file of the experiment, or its run directory; or demo."),
]
CONFIG_OPTION = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", "-c", help="YAML file of the experiment.", rich_help_panel=EXPERIMENT),
]


def experiment_named(what: Path, runs: Path) -> tuple[Path, Path] | None:
    """(The file of an experiment, the folder that holds run directories: `runs`, or that of the one that was named).

    None where it is neither a YAML file, a run directory nor the demo.
    """
    if what.suffix in ENDINGS or is_demo(what):
        return what, runs
    from snrkit.experiment.run import Run

    config = Run(what).config
    return (config, what.resolve().parent) if config.is_file() else None


def check_one(what: object, config: object, command: str) -> None:
    """SnrkitError unless one of the two ways to name an experiment is taken."""
    if (what is None) == (config is None):
        said = "name the experiment once" if what is not None else "name a YAML file, a run directory or demo"
        raise SnrkitError(f"{command}: {said}, such as snrkit {command} mine.yaml, or by --config.")


def on_experiment(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes `config`, and perhaps `runs`, as one whose first word may say what it works on."""

    @functools.wraps(command)
    def named(what: Path | None, config: Path | None, **others: Any) -> None:
        name = command.__name__.replace("_", "-")
        check_one(what, config, name)
        if what is not None:
            found = experiment_named(what, others.get("runs", Path()))
            if found is None:
                raise SnrkitError(
                    f"{name}: {what} is neither a YAML file nor a run directory, by its config.yaml, nor demo."
                )
            config, runs = found
            others |= {"runs": runs} if "runs" in others else {}
        command(config=config, **others)

    given = inspect.signature(command).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    added = {"what": inspect.Parameter("what", kind, default=None, annotation=WHAT)}
    rest = {name: one.replace(kind=kind) for name, one in given.items()}
    rest["config"] = rest["config"].replace(default=None, annotation=CONFIG_OPTION)
    every = {**added, **rest}
    named.__signature__ = inspect.Signature(list(every.values()))  # type: ignore[attr-defined]
    named.__annotations__ = {name: one.annotation for name, one in every.items()} | {"return": None}
    return named


def sampler_names(ctx: Any, incomplete: str) -> list[str]:
    """For the completion of a shell: the samplers of the experiment that is named."""
    samplers = _content(ctx).get("samplers")
    names = samplers if isinstance(samplers, dict) else {}
    return [name for name in names if str(name).startswith(incomplete)]


def setting_keys(ctx: Any, incomplete: str) -> list[str]:
    """For the completion of a shell: keys of the experiment that is named, with the = that follows them."""
    return [f"{key}=" for key in _keys(_content(ctx)) if key.startswith(incomplete)]


def _content(ctx: Any) -> dict[str, Any]:
    """What the file of the experiment says; nothing where there is none that can be read."""
    from snrkit.experiment.yaml_files import read_yaml

    named = ctx.params.get("config") or ctx.params.get("what")
    found = None if named is None else experiment_named(Path(named), Path())
    try:
        return {} if found is None else read_yaml(file_of(found[0]))
    except SnrkitError:
        return {}


def _keys(content: Any, above: str = "") -> Iterator[str]:
    """The paths of all that is no mapping."""
    if not isinstance(content, dict):
        yield above
        return
    for key, value in content.items():
        yield from _keys(value, f"{above}.{key}" if above else str(key))
