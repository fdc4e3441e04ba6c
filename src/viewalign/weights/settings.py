"""Settings of `viewalign export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from viewalign.utils.settings import PathOrName, Settings

_READ_BY = {
    "encoder": {"weights", "licence", "cite", "hub", "public"},
    "nnunet": {"dataset"},
    "onnx": set[str](),
    "ssl3d": {"weights"},
    "nnssl": {"weights"},
    "fomo": {"weights"},
}


def _repository(name: str) -> str:
    if len([part for part in name.split("/") if part]) != 2:
        raise ValueError("must be OWNER/NAME")
    return name


class ExportSettings(Settings):
    """Exported format."""

    format: Literal["encoder", "nnunet", "onnx", "ssl3d", "nnssl", "fomo"] = Field(
        "encoder",
        description="encoder: for viewalign, the Hub, nnssl and nnU-Net; nnunet: for nnU-Net's own commands; onnx: a "
        "fine-tuned classification or regression; ssl3d: the layout of the SSL3D challenge; nnssl: a whole network "
        "for another pretraining with nnssl; fomo: a ResEnc for the FOMO baseline's fine-tuning.",
    )
    weights: Literal["student", "teacher"] = Field(
        "student", description="student: as published; teacher: the student's moving average."
    )
    dataset: PathOrName | None = Field(
        None, description="With format=nnunet and an encoder: number, name or folder of the dataset to plan for."
    )
    licence: str | None = Field(None, description="Licence of the weights for the model card, such as cc-by-4.0.")
    cite: str = Field("", description="Further citations for the model card, besides method and software.")
    hub: Annotated[str, AfterValidator(_repository)] | None = Field(
        None, description="Publish the export on the Hugging Face Hub as OWNER/NAME."
    )
    public: bool = Field(False, description="With hub: a new repository is public instead of private.")

    @model_validator(mode="after")
    def _all_are_read(self) -> ExportSettings:
        set_here = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        idle = set_here - {"format"} - _READ_BY[self.format]
        if idle:
            raise ValueError(f"{', '.join(sorted(idle))} has no effect with format={self.format}; leave it out")
        if self.public and self.hub is None:
            raise ValueError("public needs hub=OWNER/NAME")
        return self
