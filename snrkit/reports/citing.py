"""How to name what a page was made with, and how to make it again."""

import shlex

from snrkit import __version__
from snrkit.base.numerics import NUMERICS
from snrkit.experiment.run import Run
from snrkit.reports.blocks import Block, Code, Details, OnPage, Paragraph

BIBTEX = f"""@software{{snrkit,
  title   = {{snrkit: measuring and correcting the mismatch between the noise a diffusion model sees and is told}},
  author  = {{{{The snrkit authors}}}},
  version = {{{__version__}}},
  note    = {{numerics {NUMERICS}}}
}}"""


def repeated(command: str, run: Run) -> str:
    """What makes a page of a run again, from the folder that holds the run, wherever that lies."""
    return shlex.join(["snrkit", command, run.path.resolve().name])


def citation(command: str, made_with: str = "", where: str = "in the folder that holds the run") -> list[Block]:
    """The section of a page: version, command, if it is not said before, and BibTeX.

    `made_with`: more sentences on what numbers depend on. `where`: the command is to be given.
    """
    again = f"To repeat it, {where}:" if command else ""
    says = " ".join(part for part in (f"snrkit {__version__}, numerics {NUMERICS}.", made_with, again) if part)
    repeat: list[Block] = [Code(command, "command")] if command else []
    return [OnPage([Details("Cite and repeat", [Paragraph(says), *repeat, Code(BIBTEX, "BibTeX")])])]
