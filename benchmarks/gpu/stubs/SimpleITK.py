"""A stand-in for SimpleITK (53 MB) on a machine that only runs this check: it can be imported, and reads nothing."""

from typing import Any


class ProcessObject:
    """Its one method that is called on import of viewalign."""

    @staticmethod
    def SetGlobalWarningDisplay(shown: bool) -> None:  # noqa: N802
        """Do nothing."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"SimpleITK.{name} is not available: benchmarks/gpu/stubs only makes the import work.")

    return missing
