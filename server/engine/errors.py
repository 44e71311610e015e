"""Errors of loading and running a model."""


class EngineError(Exception):
    """Base class: the engine cannot do what was asked."""


class ModelLoadError(EngineError):
    """The model folder or hub id cannot be loaded."""


class UnsupportedModelError(EngineError):
    """The model's architecture needs something that the engine does not do exactly."""


class VariantError(EngineError):
    """A variant of the resident model cannot be made, or does not work."""
