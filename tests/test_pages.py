"""What people read: links lead somewhere, the README stays short, and what it shows is true."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

from snrkit.base.starters import STARTERS
from snrkit.experiment.experiment import parse_experiment
from snrkit.reports.glossary import BASICS, TERMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("studies/*/*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
LONGEST = 900  # words of the README
LARGEST = 60_000  # bytes of a picture of the gallery


def anchors(page):
    """Those that its headings have."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    """To a file that is there, and to one of its headings; addresses of the web are not followed."""
    assert len(PAGES) > 20
    broken = []
    for page in PAGES:
        for link in LINK.findall(page.read_text()):
            file, _, anchor = link.partition("#")
            if file.startswith("http"):
                continue
            place = page.parent / file if file else page
            if not place.exists() or (anchor and anchor not in anchors(place)):
                broken.append((page.name, link))
    assert not broken


def test_every_table_has_its_header():
    """A blank line within one would cut it in two, of which the second is none."""
    cut = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for table in re.findall(r"(?:^\|[ -].*\n)+", text, re.MULTILINE):
            if not re.fullmatch(r"[|:\- ]+", [*table.splitlines(), ""][1]):
                cut.append((page.name, table.splitlines()[0]))
    assert not cut


def test_every_page_is_reached_from_the_readme():
    """No page of docs/ that a reader does not find."""
    named = {Path(link.partition("#")[0]).name for link in LINK.findall((ROOT / "README.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("**/*.md")} <= named


def test_the_readme_is_short():
    """It is read before anything is installed."""
    assert len((ROOT / "README.md").read_text().split()) <= LONGEST


def test_the_readme_s_experiment_is_one():
    """As it is written."""
    (content,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    experiment = parse_experiment(yaml.safe_load(content), "README.md")
    costs = {name: experiment.model.parts.cost(sampler) for name, sampler in experiment.samplers.items()}
    assert costs == {"heun-35": 35, "euler-35": 35}  # as they are named


def test_the_readme_s_commands_are_there():
    """Every name of its table, and those that its lines run."""
    from snrkit.commands.cli import app

    text = (ROOT / "README.md").read_text()
    known = {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands}
    named = set(re.findall(r"snrkit ([a-z-]+) (?=--|[A-Z]|demo|mine\.yaml)", text))
    for line in re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", text, re.MULTILINE):
        named |= set(re.findall(r"`([a-z-]+)`", line))
    assert {"certify", "measure-shift", "run", "audit"} <= named <= known


@pytest.mark.parametrize("page", ["images", "diffusers"])
def test_a_tutorial_names_samplers_that_init_writes(page):
    """Those of its template, of which comments stand for what the page has its reader uncomment."""
    text = (ROOT / f"docs/tutorials/{page}.md").read_text()
    lines = re.findall(r"^  (# )?([\w-]+): \{grid", (STARTERS / "samplers.template").read_text(), re.MULTILINE)
    written, comments = ({name for mark, name in lines if bool(mark) == is_one} for is_one in (False, True))
    named = set(re.findall(r"--sampler ([\w-]+)", text)) | set(re.findall(r"`(\w+-13[\w-]*)`", text))
    assert {"euler-13"} < named <= written | comments
    assert not named & comments or "Take away its `# `" in text


@pytest.fixture(scope="module")
def gallery():
    """(The script of the gallery, its page, the numbers that it wrote)."""
    record = json.loads((ROOT / "docs" / "gallery" / "gallery.json").read_text())
    return runpy.run_path(str(ROOT / "docs" / "gallery.py")), (ROOT / "docs" / "gallery.md").read_text(), record


def test_the_gallery_s_numbers_are_those_that_were_found(gallery):
    """The captions are made of the JSON, and no decimal number stands outside of them."""
    script, page, record = gallery
    assert script["settled"](page, record) == page
    captions = [" ".join(script["caption"](found).split()) for found in record.values()]
    flat = " ".join(page.split())
    for caption in captions:
        assert flat.count(caption) == 1
        flat = flat.replace(caption, "")
    assert not re.findall(r"\d\.\d", flat)


def test_the_gallery_s_sizes_are_those_of_its_script(gallery):
    """First states, images and ranges, as the page says them."""
    script, page, _ = gallery
    flat = " ".join(page.split())
    assert f"on {script['NOISES']} first states, and the distances below are on {script['NOISES']} others" in flat
    assert f"FD-digits on {script['TRIED']} images" in flat
    assert f"on five ranges of {script['SCORED'] // script['RANGES']} images" in flat
    assert script["RANGES"] == 5


def test_every_correction_of_the_gallery_has_its_picture(gallery):
    """One of each that the script shows, small, and on the page."""
    script, page, record = gallery
    names = [show.name for show in script["SHOWS"]]
    assert names == list(record)
    pictures = {path.stem: path.stat().st_size for path in (ROOT / "docs" / "gallery").glob("*.png")}
    assert set(pictures) == set(names)
    assert max(pictures.values()) <= LARGEST
    assert re.findall(r"gallery/([a-z0-9-]+)\.png", page) == names


def test_the_glossary_says_everything_once():
    """No name has two meanings, within results and beyond them."""
    words = [word.lower() for term in (*TERMS, *BASICS) for word in (term.name, *term.also)]
    assert len(set(words)) >= len(words) - 1  # DCW is also written dcw
    anchors_of = [term.anchor for term in (*TERMS, *BASICS)]
    assert len(set(anchors_of)) == len(anchors_of)


def test_every_dependency_has_its_licence_listed():
    """Of the package and of its extras, but for the tests' own; no row too many."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for name, extra in project["optional-dependencies"].items() if name != "test" for one in extra]
    wanted = {re.split(r"[<>=\[]", one)[0] for one in (*project["dependencies"], *extras)}
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Licences of what snrkit uses")[1]
    rows = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:]
    assert {name.strip() for row in rows for name in row.split(",")} == wanted
