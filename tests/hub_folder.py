"""A folder that stands in for the Hugging Face Hub: the four calls of it that snrkit makes, with their own arguments.

<root>/models/owner/name/...      repositories of models
<root>/datasets/owner/name/...    of data sets
"""

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
from huggingface_hub.utils import filter_repo_objects


class FolderHub:
    """What `huggingface_hub.HfApi` and `snapshot_download` would do, on a folder.

    `breaks` is the number of files after which the network goes; then the package raises or, with `tolerant`, gives
    the folder as it is, as versions below 2 do.
    """

    def __init__(self, root, cache):
        self.root, self.cache, self.fetches, self.reachable = Path(root), Path(cache), [], True
        self.breaks, self.tolerant, self.patterns = None, False, []

    def place(self, repo_id, repo_type):
        folder = self.root / f"{repo_type or 'model'}s" / repo_id
        if not self.reachable:
            raise ConnectionError("no route to host")
        if not folder.is_dir():
            raise ValueError(f"404: {repo_id}")
        return folder

    def HfApi(self):
        return self

    def list_repo_files(self, repo_id, *, revision=None, repo_type=None):
        folder = self.place(repo_id, repo_type)
        return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]

    def snapshot_download(self, repo_id, *, repo_type=None, revision=None, allow_patterns=None):
        made = self.cache / f"{repo_type}s--{repo_id.replace('/', '--')}"
        folder = self.place(repo_id, repo_type)
        self.patterns.append(allow_patterns)
        names = self.list_repo_files(repo_id, repo_type=repo_type)
        for number, name in enumerate(filter_repo_objects(names, allow_patterns=allow_patterns)):
            if number == self.breaks:
                if self.tolerant:
                    break
                raise ConnectionError("no route to host")
            self.fetches.append(name)
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, made / name)
        return str(made)

    def create_repo(self, repo_id, *, repo_type=None, private=None, exist_ok=False):
        if not self.reachable:
            raise ConnectionError("no route to host")
        (self.root / f"{repo_type}s" / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, commit_message=None, revision=None, repo_type=None):
        shutil.copytree(folder_path, self.place(repo_id, repo_type), dirs_exist_ok=True)
        return SimpleNamespace(oid="0" * 40)


def check_as_the_package():
    """The package has these calls, with arguments of these names."""
    api = huggingface_hub.HfApi
    theirs = {
        "list_repo_files": api.list_repo_files,
        "snapshot_download": huggingface_hub.snapshot_download,
        "create_repo": api.create_repo,
        "upload_folder": api.upload_folder,
    }
    for name, call in theirs.items():
        ours = set(inspect.signature(getattr(FolderHub, name)).parameters) - {"self"}
        assert ours <= set(inspect.signature(call).parameters), name
