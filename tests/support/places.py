"""Where plain data can be changed."""


def places(value, at=()):
    """Every place of plain data."""
    yield at
    steps = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for step in steps:
        yield from places(value[step], (*at, step))
