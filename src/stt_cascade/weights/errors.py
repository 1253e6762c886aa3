"""What can go wrong with weights; the tree is drawn in the package's docstring."""

from __future__ import annotations


class WeightsError(Exception):
    """A model could not be brought in or checked; the message says what to do about it."""


class UnknownModelError(WeightsError):
    """The table has no such model."""


class SourceError(WeightsError):
    """One source could not deliver a file; another source may."""


class DigestError(SourceError):
    """A source delivered other bytes than the table promises; they have been thrown away."""


class StorageError(WeightsError):
    """The weights cannot be written: the disk is full, or the folder is not writable."""
