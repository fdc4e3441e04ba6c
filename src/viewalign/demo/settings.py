"""Settings of `viewalign demo`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from viewalign.utils.settings import Count, Settings


class DemoOptions(Settings):
    """Demo."""

    steps: Count = Field(240, description="Pretraining steps.")
    spacing: Annotated[float, Field(ge=0.01)] | None = Field(
        None, description="Voxel size of the store in mm; null: 2 for synthetic images, 1 for yours."
    )
