"""What users import: the client for feature tables and training sets.

It needs polars and deltalake, which a worker must never load, so it comes when first asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.features.offline import FeatureEngineeringClient, FeatureLookup, TrainingSet

__all__ = ["FeatureEngineeringClient", "FeatureLookup", "TrainingSet"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from serving.features import offline

    return getattr(offline, name)
