from capture import meters, rows, wal
from capture.settings import Settings

LABEL = rows.Label(20_000, "a", None, 0, "1", 1, 1, None)


def test_a_log_shows_what_it_appended_and_what_waits(settings: Settings) -> None:
    log = wal.Log(settings.wal_dir, settings)
    log.append("c.s.t_labels", "labels", [LABEL, LABEL])
    text = meters.text(meters.registry(log.readings)).decode()
    assert 'inferlake_log_rows_total{kind="labels",table="c.s.t_labels"} 2.0' in text
    assert f"inferlake_log_backlog_bytes {log.backlog_bytes}.0" in text
    log.close()


def test_several_sources_share_a_registry_and_are_asked_at_each_scrape() -> None:
    count = [1]
    table = {"rows": 3, "commit_version": 2, "last_commit_ms": 1500}
    status = {"tables": {"c.s.t": table}, "failing": {"c.s.u": "why"}}
    registry = meters.registry(
        lambda: [meters.Reading(meters.LOG_BYTES, count[0])], lambda: meters.of_committed(status)
    )
    assert b"inferlake_log_bytes_total 1.0" in meters.text(registry)
    count[0] = 7
    text = meters.text(registry)
    assert b"inferlake_log_bytes_total 7.0" in text
    assert b'inferlake_table_last_commit_timestamp_seconds{table="c.s.t"} 1.5' in text
    assert b'inferlake_table_failing{table="c.s.u"} 1.0' in text
