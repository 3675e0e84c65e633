"""How to name what a page was made with, and how to make it again."""

from snrkit import __version__
from snrkit.base.numerics import NUMERICS
from snrkit.reports.blocks import Block, Code, Details, OnPage, Paragraph

BIBTEX = f"""@software{{snrkit,
  title   = {{snrkit: measuring and correcting the mismatch between the noise a diffusion model sees and is told}},
  author  = {{{{The snrkit authors}}}},
  version = {{{__version__}}},
  note    = {{numerics {NUMERICS}}}
}}"""


def citation(command: str, made_with: str = "") -> list[Block]:
    """The section of a page: version, command, if it is not said before, and BibTeX.

    `made_with`: more sentences on what numbers depend on.
    """
    says = f"snrkit {__version__}, numerics {NUMERICS}. {made_with}".strip()
    repeat: list[Block] = [Code(command, "command")] if command else []
    return [OnPage([Details("Cite and repeat", [Paragraph(says), *repeat, Code(BIBTEX, "BibTeX")])])]
