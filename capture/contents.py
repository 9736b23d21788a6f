"""What a table is made of: columns, files, bytes, versions. For the child that answers reads."""

from collections.abc import Mapping
from typing import Any

import deltalake
import pyarrow.compute as pc

from capture import compaction, delta, delta_commits, delta_log, names
from capture.settings import Settings


def table_contents(settings: Settings, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """{"exists", "columns": [{"name", "type", "nullable"}], "partition_by", "day_column",
    "rows", "files", "bytes", "versions": {"first", "newest"}, "commit_version"} of the newest
    version; of no table, `exists` false alone.

    arguments: `table`, its full name. rows: null where a file does not say. day_column: null unless
    whole days can be dropped. versions: those that can still be read."""
    name = names.table_name(str(arguments["table"]))
    path = delta.path_of(settings, str(name))
    if not deltalake.DeltaTable.is_deltatable(str(path)):
        return {"exists": False}
    handle = deltalake.DeltaTable(path)
    files = delta_commits.present_files(handle)
    counted = files["num_records"] if "num_records" in files.column_names else None
    known = counted is not None and (len(files) == 0 or counted.null_count == 0)
    readable = delta_log.checkpoint_versions(path) or delta_log.commit_versions(path)
    return {
        "exists": True,
        "columns": [
            {
                "name": field.name,
                "type": getattr(field.type, "type", None) or str(field.type),
                "nullable": field.nullable,
            }
            for field in handle.schema().fields
        ],
        "partition_by": list(handle.metadata().partition_columns),
        "day_column": compaction.day_column(handle),
        "rows": (pc.sum(counted).as_py() or 0) if known else None,
        "files": len(files),
        "bytes": pc.sum(files["size_bytes"]).as_py() or 0,
        "versions": {"first": readable[0], "newest": handle.version()},
        "commit_version": handle.version(),
    }
