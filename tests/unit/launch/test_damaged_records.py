"""Records that a power cut, a full disk or a hand has damaged: one line each, and other jobs stay visible."""

import errno
import json
import os
import random
import shutil
import time
from dataclasses import asdict, replace

import psutil
import pytest

from snpdeconv.errors import ConfigError, UserError
from snpdeconv.launch import status
from snpdeconv.launch.records import (
    Outcome,
    Record,
    all_records,
    begin,
    find_record,
    going_on,
    new_record,
    save,
    write_outcome,
)
from snpdeconv.launch.status import as_dict, detail_lines, read_status, settle, table_lines

NUM_DAMAGED = 640
KEY = "0" * 32


def made(home, id="height", **facts) -> Record:
    one = new_record(
        Record(
            id=id, kind="search", preset="small_cpu", model="height", out=str(home / "out"),
            site="local", scheduler="local", command="snpdeconv submit small_cpu", submitted=time.time(),
            host="", elements=("trial-0", "trial-1"), scheduler_id="4194303", process_created=1.0, **facts,
        )
    )  # fmt: skip
    save(one)
    return one


@pytest.fixture
def jobs(home):
    """Two jobs: one of a search, with all that such a record holds, and one that nothing happens to."""
    searched, well = made(home), replace(made(home, id="well"), kind="predict")
    save(well)
    for element in (0, 1):
        begin(searched.folder, element)
        result = {"name": "val/r2", "value": 0.5, "settings": {"model.dropout": 0.1}, "run_id": "ab"}
        write_outcome(searched.folder, element, Outcome("done", result=result))
        write_outcome(well.folder, element, Outcome("done"))
        (searched.folder / f"trial-{element}.json").write_text(
            json.dumps({"number": element, "values": {"model.dropout": 0.1}})
        )
        out = home / "out" / f"trial-{element}"
        out.mkdir(parents=True)
        (out / "run.json").write_text(json.dumps({"key": KEY, "settings": {}}))
    spool = home / "spool" / KEY
    spool.mkdir(parents=True)
    (spool / "events.jsonl").write_text(
        '{"kind": "metrics", "time_ms": 1, "step": 3, "values": {"train/epoch_lr": 0.5, "val/r2": 0.1}}\n'
    )
    (spool / "sent.json").write_text(json.dumps({"run_id": "ab", "uri": "http://host"}))
    return searched, well


ODD = [
    None,
    True,
    -1,
    1e308,
    10**400,
    "",
    "..",
    "../../etc",
    "\0",
    "a\nb",
    "é" * 5000,
    [],
    {},
    [[]],
    {"a": {}},
    "9" * 40,
]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One of many kinds of damage."""
    match rng.randrange(8):
        case 0:
            return data[: rng.randrange(len(data))]
        case 1:
            place = rng.randrange(len(data))
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 2:
            return rng.choice(
                [b"", b"\0" * len(data), b"null", b"[]", b"3", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf" + data]
            )
        case 3:
            return rng.randbytes(rng.randrange(1, 200))
        case 4:
            return rng.choice([b"[", b'{"a":']) * rng.choice([50, 100_000])
        case 5:
            return data + data
        case 6:
            return data.replace(b"0", rng.choice([b"1e999", b"NaN", b"-0", b"9" * 5000]), 1)
    value = json.loads(data.splitlines()[0] if data.startswith(b'{"') else data)
    if isinstance(value, dict) and value:
        key = rng.choice(sorted(value))
        if rng.random() < 0.3:
            del value[key]
        else:
            value[key] = rng.choice(ODD)
    return json.dumps(value).encode()


def test_all_kinds_of_damage_are_one_line(jobs, home, caplog, tmp_path):
    searched, well = jobs
    files = sorted(path for path in searched.folder.rglob("*.json*"))
    files += sorted((home / "out").rglob("run.json")) + sorted((home / "spool").rglob("*.json*"))
    assert len(files) >= 10
    whole = {path: path.read_bytes() for path in files}
    rng = random.Random(20261126)
    told = 0
    for round_ in range(NUM_DAMAGED):
        path = files[round_ % len(files)]
        path.write_bytes(damaged(whole[path], rng))
        caplog.clear()
        statuses = read_status(all_records())
        assert well.id in [one.record.id for one in statuses], path
        assert table_lines(statuses)
        for one in statuses:
            detail_lines(one)
            assert json.loads(json.dumps(as_dict(one)))
            assert "\n" not in one.reason
        said: list[str] = []
        try:
            find_record(searched.id)
        except UserError as error:
            said.append(str(error))
        assert all("\n" not in message and len(message) < 1000 for message in said + caplog.messages)
        assert all(str(searched.folder) in message for message in said)
        told += any(path.name in message for message in caplog.messages)
        path.write_bytes(whole[path])
    assert told > NUM_DAMAGED / 8


@pytest.mark.parametrize("what", ["empty", "folder", "pipe", "huge", "another"])
def test_status_goes_on_past_one_damaged_record(run, jobs, home, what):
    searched, well = jobs
    path = searched.folder / "job.json"
    facts = asdict(searched)
    path.unlink()
    match what:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "huge":
            with path.open("wb") as stream:
                stream.truncate(2**31)
        case "another":
            path.write_text(json.dumps(facts | {"id": "../../other"}))
    ran = run("status")
    assert ran.code == 0
    assert well.id in ran.out
    assert searched.id not in ran.out
    assert len(ran.err.splitlines()) == 1
    assert "job.json" in ran.err
    assert f"`rm -r {searched.folder}` forgets the job" in ran.err
    ran = run("status", searched.id)
    assert ran.code == 2
    assert ran.err.startswith(f"error: {path}: ")
    assert len(ran.err.splitlines()) == 1


def test_status_writes_nothing(run, home):
    one = made(home)
    begin(one.folder, 0)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    assert "failed" in run("status").out
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    settle([one])
    assert one.outcome(0).end == "failed"


def test_what_happens_elsewhere_is_unknown_here(run, home):
    """A home on a shared disk, or in a container: the same number is another process there, or none."""
    me = psutil.Process()
    here = replace(made(home), scheduler_id=str(os.getpid()), process_created=me.create_time())
    there, inside = replace(here, host="node17"), replace(here, pid_namespace="pid:[1]")
    assert read_status([here])[0].state == "running"
    elsewhere = ((there, "a process of node17: unknown here"), (inside, "another container of this host"))
    for one, told in elsewhere:
        save(one)
        (now,) = read_status([one])
        assert (now.state, now.is_live) == ("unknown", True)
        assert told in now.reason
        settle([one])
        assert one.outcome(0) is None
        ran = run("cancel", one.id)
        assert ran.code == 2
        assert told in ran.err
        assert f"cancel it there: snpdeconv cancel {one.id}" in ran.err
    write_outcome(there.folder, 0, Outcome("done"))
    write_outcome(there.folder, 1, Outcome("done"))
    assert read_status([there])[0].state == "done"
    shutil.rmtree(there.folder)


@pytest.mark.parametrize("name", ["a\u00a0b", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u3000x"])
def test_blanks_and_joiners_of_other_scripts_are_no_damage(home, name):
    record = replace(made(home), out=str(home / name))
    save(record)
    assert all_records() == [record]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u2028b"])
def test_a_record_that_would_break_a_line_is_not_written(home, name):
    with pytest.raises(ConfigError, match="holds a line break or another control character; rename it"):
        save(replace(made(home), out=str(home / name)))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("snpdeconv submit small_cpu", "go on with: snpdeconv submit small_cpu --out /out"),
        ("snpdeconv submit small_cpu --out=/out", "go on with: snpdeconv submit small_cpu --out=/out"),
        ("snpdeconv submit --out /out", "go on with: snpdeconv submit --out /out"),
        ("snpdeconv submit 'small", "go on with: snpdeconv submit 'small --out /out"),
        ("snpdeconv\nsubmit", "submit it again"),
    ],
)
def test_how_to_go_on_is_told_of_any_command(home, command, told):
    record = replace(made(home), kind="train", command=command, out="/out")
    assert going_on(record) == told


def test_a_date_that_no_calendar_has_is_damage(home, caplog):
    record = replace(made(home), scheduler="slurm", scheduler_id="", job_name="x", submitted=1e308)
    save(record)
    assert all_records() == []
    assert "is damaged" in caplog.text


def test_a_job_that_is_just_being_started_has_not_failed(home):
    record = replace(made(home), elements=(), scheduler_id="", process_created=0.0)
    save(record)
    (now,) = read_status([record])
    assert (now.state, now.reason) == ("unknown", "it is being started")
    settle([record])
    assert record.outcome() is None
    (later,) = read_status([replace(record, submitted=record.submitted - 600)])
    assert later.state == "failed"


def test_a_record_that_cannot_be_written_keeps_no_other_from_being_settled(home, monkeypatch, caplog):
    bad, good = made(home, id="bad"), made(home, id="good")
    real = status.write_outcome

    def full(folder, element, outcome):
        if folder == bad.folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(folder, element, outcome)

    monkeypatch.setattr(status, "write_outcome", full)
    settle(all_records())
    assert good.outcome(0).end == "failed"
    assert f"{bad.folder}: how it ended cannot be written (No space left on device)" in caplog.text
