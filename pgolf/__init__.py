"""pgolf: the Parameter Golf craft as a staged pipeline."""

__version__ = "0.1.0"
