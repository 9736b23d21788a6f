"""What processes of an entity wrote: how much is kept, and what is shown."""

import os

from capture.settings import Settings
from serving import logs


def test_the_end_of_a_log_is_short_and_whole_lines(tmp_path):
    path = tmp_path / "log"
    assert logs.tail(path) == ""
    path.write_text("".join(f"line {i}\n\n" for i in range(1000)))
    assert logs.tail(path).splitlines() == [f"line {i}" for i in range(985, 1000)]
    path.write_text('Traceback\n{"time": "2026", "event": "model_loaded"}\n')
    assert logs.tail(path) == "Traceback"
    path.write_text("x" * 10_000)
    assert len(logs.tail(path)) == logs.TAIL_CHARACTERS


def test_a_log_is_kept_by_size_and_its_writer_goes_on(tmp_path):
    path = tmp_path / "log"
    with path.open("ab") as writer:
        writer.write(b"old line\n" * (logs.LOG_BYTES // 9 + 1))
        writer.flush()
        logs.trim(path)
        writer.write(b"new line\n")
    assert path.stat().st_size <= logs.LOG_KEPT_BYTES + 9
    text = path.read_bytes()
    assert text.startswith(b"old line\n")
    assert text.endswith(b"old line\nnew line\n")


def test_the_logs_of_replicas_and_template_are_shown_newest_last(tmp_path):
    settings = Settings(data_dir=tmp_path)
    folder = settings.logs_dir / "flights" / "v1"
    folder.mkdir(parents=True)
    (folder / "replica-b.log").write_text("line of replica-b\n" * 20_000)
    found = logs.of_entity(settings, "flights", "v1")
    assert len(found.encode()) <= logs.MOST_BYTES + 100
    assert found.startswith("==> replica-b.log <==\nline of replica-b\n")
    for name in ("template", "replica-a"):
        (folder / f"{name}.log").write_text(f"line of {name}\n")
        os.utime(folder / f"{name}.log", (9, 9) if name == "template" else (8, 8))
    (folder / "replica-b.log").write_text("line of replica-b\n")
    os.utime(folder / "replica-b.log", (7, 7))
    headed = "\n".join(f"==> {n}.log <==\nline of {n}\n" for n in ("replica-b", "replica-a"))
    assert logs.of_entity(settings, "flights", "v1") == (
        f"{headed}\n==> template.log <==\nline of template\n"
    )
