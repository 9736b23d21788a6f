"""What a window is compared with: the baseline as it meets it, and the window before."""

import dataclasses

from monitors import baseline, kept, watch


def before(known: watch.Watch, key: kept.WindowKey) -> list[kept.WindowKey]:
    """The windows right before this one that it is compared with."""
    found = []
    for _ in range(max(1, known.baseline.before if known.baseline is not None else 1)):
        if key.granularity is None:
            break
        key = key.previous
        found.append(key)
    return found


def of_baseline(known: watch.Watch, key: kept.WindowKey) -> baseline.Baseline | None:
    """The baseline as a window meets it."""
    if known.baseline is None or not known.baseline.before:
        return known.baseline
    parts = [known.kept.judged(other) or {} for other in before(known, key)]
    made = baseline.of_windows(known.baseline, parts)
    return made if key.slice is None else dataclasses.replace(made, by_slice={key.slice: made})


def previous(known: watch.Watch, key: kept.WindowKey) -> kept.WindowKey | None:
    """The window before, which may not be known; None: a snapshot has none before it."""
    if key.granularity is not None:
        return key.previous
    earlier = [other for other in known.kept.keys(None, key.slice) if other < key]
    return earlier[-1] if earlier else None
