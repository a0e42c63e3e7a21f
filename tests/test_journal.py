"""The journal of a job: whole, chained, and not believed once somebody edited it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench_remote import journal, keeper, place
from edgecompress import devices, session
from edgecompress.errors import AgentFailed, RecordError
from edgecompress.session import journals, link
from tests.detached_jobs import FIVE, of_job, only_job, slow
from tests.device_fixtures import gone


# --- the journal -----------------------------------------------------------------------------------------------------
def written(path: Path) -> None:
    log = journal.Journal(str(path), "a" * 64)
    for number in range(3):
        log.write({"event": "samples", "ns": [number, 1000]})
    log.end({"event": "done"})
    log.close()


def edited(kind: str, lines: list[bytes]) -> list[bytes]:
    """The lines of a journal after somebody was there."""
    if kind == "number":
        return [line.replace(b"1000", b"999") if number == 1 else line for number, line in enumerate(lines)]
    if kind == "left out":
        return lines[:1] + lines[2:]
    if kind == "order":
        return [lines[0], lines[2], lines[1], lines[3]]
    return lines[:-1]


def test_a_journal_that_is_whole_verifies(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    assert journal.verify(str(tmp_path / "journal"), "a" * 64) == 4
    with pytest.raises(journal.Broken):
        journal.verify(str(tmp_path / "journal"), "b" * 64)


@pytest.mark.parametrize("kind", ["number", "left out", "order", "end"])
def test_a_journal_that_somebody_edited_does_not_verify(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "journal"
    written(path)
    path.write_bytes(b"".join(edited(kind, path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(journal.Broken):
        journal.verify(str(path), "a" * 64)


def test_what_was_half_written_is_cut_off_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    log = journal.Journal(str(path), "a" * 64)
    log.write({"event": "hello"})
    log.close()
    with path.open("ab") as stream:
        stream.write(b'{"event": "samples", "ns": [1, 2')
    log = journal.Journal(str(path), "a" * 64)
    log.end({"event": "failed"})
    log.close()
    assert journal.verify(str(path), "a" * 64) == 2


def test_a_journal_edited_on_the_device_is_not_believed(
    local_device: devices.Device, tiny_model: Path, stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = slow(stranger, tmp_path / "notes", seconds=0.05)
    monkeypatch.setattr(link.Link, "cancel", link.Link.leave)

    def leave(word: str) -> None:
        if word.endswith("loaded"):
            raise OSError("the host goes away")

    with pytest.raises(OSError, match="goes away"):
        session.measure_file(local_device, tiny_model, FIVE, runtime=name, progress=leave)
    job = only_job(local_device)
    assert gone(of_job(job), within_s=30)
    path = Path(local_device.config.cache) / "jobs" / job / "journal"
    content = path.read_bytes()
    at = content.index(b'"load_s": ') + len(b'"load_s": ')
    path.write_bytes(content[:at] + (b"8" if content[at : at + 1] == b"9" else b"9") + content[at + 1 :])
    monkeypatch.undo()
    monkeypatch.setenv("EDGECOMPRESS_HOME", str(tmp_path / "edgecompress"))
    monkeypatch.setattr(link, "LEASE_FOLDERS", ())
    with pytest.raises(RecordError, match="was changed"):
        journals.verify(path.parent)
    with pytest.raises(AgentFailed, match="journal was changed"):
        session.measure_file(local_device, tiny_model, FIVE, runtime=name)


def test_a_job_s_name_depends_on_what_it_does_and_for_whom_and_its_parts_are_checked(tmp_path: Path) -> None:
    job = {"action": "measure", "threads": 1, "who": "anna@desk"}
    assert link.name(job, "/a/b/agent", 0) == link.name(dict(job), "/c/agent", 0)
    others = [link.name(job | {"threads": 2}, "agent", 0), link.name(job | {"who": "ben@desk"}, "agent", 0)]
    assert len({link.name(job, "agent", 0), link.name(job, "agent", 1), *others}) == 4
    for hostile in ("../../etc", "A" * 64, "", None, "a" * 63):
        with pytest.raises(place.Refusal):
            place.Place(str(tmp_path), hostile)


def test_a_keeper_s_default_of_being_orphaned_is_the_host_s() -> None:
    assert keeper.ORPHAN_S == link.ORPHAN_S == 900.0
