"""What every part of a recipe has in common: frozen, strict, no unknown keys."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]


def stays_inside(path: str) -> str:
    """`path`, if it is one inside a volume. Raises ValueError if it is absolute or climbs out."""
    if path.startswith(("/", "~")) or ".." in path.split("/") or "\\" in path:
        raise ValueError("is not a path inside a volume. Give one relative to the volume or to the recipe, without '..'.")
    return path


RelativePath = Annotated[str, Field(min_length=1), AfterValidator(stays_inside)]
"""A path inside a volume or beside the recipe: never absolute, never climbing out with '..'."""


class Part(BaseModel):
    """A section of a recipe, or the parameters of a stage."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )
