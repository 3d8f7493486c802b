"""Ranges that a loss's, mixer's or source's parameter declares in its annotation; a recipe is checked by them."""

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

PositiveInt = Annotated[int, Field(gt=0)]
TwoOrMore = Annotated[int, Field(ge=2)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def above(other: str, *, or_equal: bool = False) -> AfterValidator:
    """Return a lower bound: the value of another parameter of the same function."""

    def bounded(value: float, info: ValidationInfo) -> float:
        least = (info.context or {}).get(other)  # of all parameters by name
        if isinstance(least, int | float) and (value < least or (value == least and not or_equal)):
            raise PydanticCustomError("above", f"must be {'at least' if or_equal else 'above'} {other} ({least})")
        return value

    return AfterValidator(bounded)
