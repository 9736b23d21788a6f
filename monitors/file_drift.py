"""Drift between files: every window against the reference, as the JSON says it. Pure.

The contract is monitors.md, "Command line". Numbers and judgements are those of the server:
profiles, distances, and the largest distance of the reference's own windows where it has the time
column.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monitors import distances, file_profiles, portions, profile, slices


@dataclass(frozen=True, slots=True)
class Comparison:
    """A reference, the columns compared with it, and how far its own windows are from it."""

    reference: file_profiles.Reference
    columns: Sequence[file_profiles.Column]
    maxima: Mapping[file_profiles.Group, Mapping[str, float]]

    @classmethod
    def of(
        cls, reference: file_profiles.Reference, columns: Sequence[file_profiles.Column]
    ) -> "Comparison":
        """Of a reference as it was profiled."""
        maxima = {
            group: distances.own_maxima(own, reference.profiles[group])
            for group, own in reference.own.items()
        }
        return cls(reference, columns, maxima)

    def entries(
        self, window: file_profiles.Window, windowing: portions.Windowing
    ) -> Iterator[dict[str, Any]]:
        """The window in the JSON form, then each of its slices."""
        named = windowing.shown(window.key, window.rows)
        for slice_ in (None, *sorted(window.sliced)):
            columns = {column.name: self._column(column, slice_, window) for column in self.columns}
            yield {
                "window": named,
                "rows": window.rows if slice_ is None else window.sliced[slice_],
                "slice": None if slice_ is None else {"key": slice_[0], "value": slice_[1]},
                "columns": ranked(columns),
            }

    def _column(
        self,
        column: file_profiles.Column,
        slice_: slices.Slice | None,
        window: file_profiles.Window,
    ) -> dict[str, Any]:
        group, nothing = (slice_, column.name), column.nothing()
        ours = profile.compact(window.measured.get(group, nothing))
        theirs = self.reference.profiles.get(group, nothing)
        found = distances.compare(ours, theirs)
        judged = distances.judge(
            found,
            column.kind,
            ours.rows,
            theirs.rows,
            len(self.columns),
            own_maxima=self.maxima.get(group),
        )
        return {
            "kind": column.kind,
            "status": judged.status,
            "severity": judged.severity,
            "rank": 0,
            "metric": judged.metric,
            "effect": judged.effect_over_threshold,
            "reasons": judged.reasons,
            "metrics": {name: distance.to_dict() for name, distance in found.items()},
        }


def ranked(columns: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """With their rank: 1 for the farthest over its limit, drifted ones first."""

    def place(name: str) -> tuple[bool, float, str]:
        one = columns[name]
        return (one["status"] != "drifted", -(one["effect"] or 0.0), name)

    places = {name: number for number, name in enumerate(sorted(columns, key=place), start=1)}
    return {name: {**one, "rank": places[name]} for name, one in columns.items()}
