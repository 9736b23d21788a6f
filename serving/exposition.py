"""Prometheus' text, with the labels of the contract. Pure."""

from collections.abc import Mapping
from typing import TypeVar

Named = tuple[str, str]  # an endpoint and one of its served entities
Key = TypeVar("Key", bound=Named)


def gauge(name: str, values: Mapping[Key, float]) -> list[str]:
    """Lines of a gauge by endpoint and served entity."""
    samples = [sample(name, value, labels(key)) for key, value in values.items()]
    return [f"# TYPE {name} gauge", *samples]


def labels(key: Named) -> dict[str, str]:
    """The labels of what belongs to a served entity."""
    endpoint, entity = key
    return {"endpoint_name": endpoint, "served_entity_name": entity}


def sample(name: str, value: float, labels: Mapping[str, str]) -> str:
    """One line."""
    # Names of endpoints and entities hold letters, digits, '_' and '-' only: nothing to escape.
    inside = ",".join(f'{label}="{text}"' for label, text in labels.items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"
