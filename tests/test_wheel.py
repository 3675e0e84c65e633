"""What is published: the wheel holds all that the package needs, and nothing else, and runs outside the repository."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

build = pytest.importorskip("hatchling.build", reason="hatchling is not installed")
ROOT = Path(__file__).parent.parent
ASSETS = {"starters/demo.yaml", "starters/digits.safetensors", "reports/assets/page.html", "py.typed", "__init__.pyi"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(wheel, sdist), built of the repository as it is."""
    folder, before = tmp_path_factory.mktemp("dist"), Path.cwd()
    os.chdir(ROOT)
    try:
        return folder / build.build_wheel(str(folder)), folder / build.build_sdist(str(folder))
    finally:
        os.chdir(before)


def test_the_wheel_holds_the_package_and_nothing_else(made):
    """Every file of it that is no cache, with the licence and the command."""
    with zipfile.ZipFile(made[0]) as wheel:
        names = set(wheel.namelist())
        of = {name for name in names if ".dist-info/" in name}
        command = next(wheel.read(name).decode() for name in of if name.endswith("entry_points.txt"))
        said = message_from_string(next(wheel.read(name).decode() for name in of if name.endswith("METADATA")))
    package = {p for p in (ROOT / "snrkit").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert names - of == {str(path.relative_to(ROOT)) for path in package}
    assert {f"snrkit/{name}" for name in ASSETS} <= names
    assert any(name.endswith("LICENSE") for name in of)
    assert "snrkit = snrkit.__main__:main" in command
    assert said["Requires-Python"] == ">=3.11"
    assert set(said.get_all("Provides-Extra", [])) >= {"diffusers", "hub", "wandb", "tensorboard"}


def test_the_source_archive_builds_by_itself(made):
    """It has the package, its settings, licence and README."""
    with tarfile.open(made[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "CITATION.cff", "snrkit/starters/digits.safetensors"} <= names
    made_here = {name for name in names if name.startswith((".venv", "runs/", "build/", ".git/"))}
    assert made_here <= {"runs/README.md"}


def test_the_wheel_runs_outside_the_repository(made, tmp_path):
    """Its demo samples, by the command that it installs, with no file of the repository at hand."""
    with zipfile.ZipFile(made[0]) as wheel:
        wheel.extractall(tmp_path / "site")
    code = "import snrkit, sys; from snrkit.__main__ import main; print(snrkit.__file__, file=sys.stderr); main()"
    arguments = ["sample", "demo", "--sampler", "euler-13", "--set", "sample={seeds: 0-7, batch: 8}", "-q"]
    settings = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr
    assert len(list((tmp_path / "runs/demo/samples/euler-13").rglob("*.png"))) == 8
