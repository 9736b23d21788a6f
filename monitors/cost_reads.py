"""What the versions of an experiment cost, read from record, lives of replicas and prices."""

import sqlalchemy as sa

from capture import database, lives, prices, usage
from capture.settings import Settings
from monitors import contract, costs


def read(
    settings: Settings, engine: sa.Engine, endpoint: str, from_ms: int
) -> dict[str, costs.Cost]:
    """Costs by version since a time, of those whose requests and whose replicas are known."""
    asked = {"by": "served_entity", "endpoint": endpoint, "from": contract.rfc3339(from_ms)}
    counted = usage.usage(settings, asked)["usage"]
    with database.reading(engine) as connection:
        table = prices.read(connection)
        found = lives.between(connection, from_ms, None, endpoint)
    newest = {life.served_entity: (life.workload_type, life.workload_size) for life in found}
    return {
        row["served_entity"]: costs.Cost(
            requests=row["requests"],
            execution_ms=row["execution_ms"] / row["requests"],
            replica=newest[row["served_entity"]],
            hour_price=table.hour(*newest[row["served_entity"]]) if table.replica_hours else None,
            currency=table.currency,
        )
        for row in counted
        if row["requests"] and row["served_entity"] in newest
    }
