"""Which numbers this version makes: the one key of everything that is kept and compared.

NUMERICS is raised with every entry under that heading of CHANGELOG.md, which names it. It is part of the manifest of
every folder of samples, of every record of scores, shifts and estimators, and of the key of every cached feature, row
and evaluation, so that numbers from before such a change are made anew or refused, never mixed with later ones.
"""

NUMERICS = 12
