"""What can go wrong through the user's input, said in sentences."""

from __future__ import annotations


class UserError(Exception):
    """A mistake a user can mend. Its text names what was wrong, where, and what to do; no traceback is shown for it."""


class RefusedImageError(UserError):
    """One image cannot be used. The text is the reason alone; whoever catches it knows the file."""
