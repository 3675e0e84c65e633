"""What people read: links lead somewhere, the README stays short, and what it shows is true."""

import re
from pathlib import Path

import yaml

from snrkit.experiment.experiment import parse_experiment

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("studies/*/*.md")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
LONGEST = 900  # words of the README


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


def test_every_page_is_reached_from_the_readme():
    """No page of docs/ that a reader does not find."""
    named = {Path(link.partition("#")[0]).name for link in LINK.findall((ROOT / "README.md").read_text())}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named


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
    named = set(re.findall(r"snrkit ([a-z-]+) (?=--|[A-Z])", text))
    for line in re.findall(r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \|", text, re.MULTILINE):
        named |= set(re.findall(r"`([a-z-]+)`", line))
    assert {"certify", "measure-shift", "run", "audit"} <= named <= known
