"""How numbers are written."""


def rounded(value: float, digits: int, signed: bool = False) -> str:
    """A number with so many digits after the point; what rounds to 0 has no sign but that of 0."""
    near = round(value, digits) + 0.0
    return f"{near:+.{digits}f}" if signed else f"{near:.{digits}f}"
