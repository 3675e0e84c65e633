"""The rows of the comparison with what was fitted for them: python studies/rivals/rows.py NAME RUNS > FILE

NAME is digits or cifar10. Coefficients and steps come from `snrkit tune --by flow`, grids from `snrkit design`.
"""

import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
GRIDS = ("designed", "gits", "oss")


def rows(name: str, runs: Path) -> str:
    """The YAML that is compared."""
    given = yaml.safe_load((HERE / f"{name}.yaml").read_text())
    run = runs / given["name"]
    samplers = dict(yaml.safe_load((run / "tune/tuned.yaml").read_text())["samplers"])
    for way in GRIDS:
        for path in sorted((run / "design").glob(f"euler-{way}-*.yaml")):
            samplers[path.stem] = yaml.safe_load(path.read_text())["samplers"][path.stem]
    content = {"base": str((HERE / f"{name}.yaml").resolve()), "name": given["name"], "samplers": samplers}
    return yaml.safe_dump(content, sort_keys=False)


if __name__ == "__main__":
    print(rows(sys.argv[1], Path(sys.argv[2])), end="")
