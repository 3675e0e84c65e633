"""`snrkit push RUN hf:owner/name`: a run on the Hugging Face Hub.

snrkit.safetensors    what snrkit export RUN --to snrkit writes
experiment.yaml       the resolved experiment, with names of files in place of this machine's paths
README.md             a card made of what the run holds
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from snrkit.base.errors import ConfigError, SnrkitError, reason_of
from snrkit.base.hub import hub_package, on_hub, place_of
from snrkit.commands.export import run_exporting
from snrkit.experiment.run import Run
from snrkit.experiment.stored import stored_experiment
from snrkit.reports.model_card import FILE, model_card
from snrkit.reports.records import Pushed


def run_pushing(
    path: Path, to: Path, average: str | None = None, checkpoint: int | None = None, private: bool = False
) -> Pushed:
    """Upload a run, in one commit. SnrkitError where it cannot be exported, or the Hub does not take it."""
    if not on_hub(to):
        raise SnrkitError(f"push: {to} is no place on the Hub; write hf:owner/name.")
    place = place_of(to)
    if place.kind != "model" or place.inside:
        raise SnrkitError(f"push: {to} is no repository of a model; write hf:owner/name.")
    hub, experiment = hub_package(), stored_experiment(path)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        exported = run_exporting(path, "snrkit", folder / FILE, average, checkpoint)
        content = _without_paths(experiment.model_dump(mode="json"))
        (folder / "experiment.yaml").write_text(yaml.safe_dump(content, sort_keys=False, width=120))
        (folder / "README.md").write_text(model_card(experiment, Run(path), exported, place.written))
        try:
            api = hub.HfApi()
            api.create_repo(repo_id=place.name, repo_type="model", private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=place.name,
                folder_path=folder,
                repo_type="model",
                revision=place.revision,
                commit_message=f"{experiment.name}: {exported.weights} at {exported.images} images",
            )
        except Exception as error:  # whatever another's package raises, of a network, a name or a token
            said = f"({reason_of(error)[:300]}); see the name, your token (hf auth login) and your network"
            raise ConfigError(f"push: the Hub did not take it {said}.") from None
    return Pushed(place.written, str(getattr(done, "oid", "")), exported.weights, exported.images)


def _without_paths(content: Any) -> Any:
    """Plain data with the last name of every absolute path in its place."""
    if isinstance(content, Mapping):
        return {key: _without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_paths(value) for value in content]
    return Path(content).name if isinstance(content, str) and content.startswith("/") else content
