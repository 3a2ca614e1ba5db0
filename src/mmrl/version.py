"""The version, in its only place: the wheel, the run records and the adapters all read it from here."""

__version__ = "0.1.0"
