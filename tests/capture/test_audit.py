"""The audit in SQL: filters and pages."""

import sqlalchemy as sa

from capture import audit, database


def test_audit_rows_are_filtered_and_paged(state: sa.Engine) -> None:
    with database.transaction(state) as db:
        for i in range(5):
            audit.write(
                db, "ann" if i % 2 else "bob", "endpoint.stop", i, endpoint="x", after={"i": i}
            )
        assert [row.time_ms for row in audit.read(db, 2)] == [4, 3]
        third = audit.read(db, 2)[-1].id
        assert [row.time_ms for row in audit.read(db, 9, below_id=third)] == [2, 1, 0]
        assert [row.time_ms for row in audit.read(db, 9, actor="ann")] == [3, 1]
        assert [row.time_ms for row in audit.read(db, 9, from_ms=1, to_ms=3)] == [2, 1]
        assert audit.read(db, 9, endpoint="y") == []
        assert audit.read(db, 1)[0].after == {"i": 4}
