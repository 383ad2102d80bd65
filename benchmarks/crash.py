"""What a memory store survives, and how fast it comes back: kills, torn files, full disks, size.

Run: python benchmarks/crash.py [--kills 100] [--moments 100000] [--seed 0]

Every writer is a child process that says through a pipe what was acknowledged; it is killed with
SIGKILL at a random moment, most of which fall into a commit, and the store is then opened and every
record is looked for. ``kill -9`` does not test power loss: the page cache survives it.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vismem.errors import StoreError
from vismem.store import MemoryStore, SegmentData, pack, unpack, verify

ROWS, SEGMENTS, COMMIT_EVERY = 8, 12, 11


def content(number: int) -> bytes:
    """The one right thumbnail of a record: 0 to 3000 bytes that follow from its number."""
    return random.Random(number).randbytes(zlib.crc32(bytes([number % 251])) % 3000)


def record(number: int) -> bytes:
    """The one right payload of a record."""
    thumbnail = torch.frombuffer(bytearray(content(number) or b"-"), dtype=torch.uint8)
    return pack({"thumbnail": thumbnail}, {"number": number})


class Recent:
    """The smallest bounded memory: the last records, sealed eight at a time."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.sealed: dict[str, list[int]] = {}
        for segment in store.segments():
            numbers = segment.columns["number"].tolist()
            if [content(n) for n in numbers] != list(segment.thumbnails):
                raise AssertionError(f"wrong thumbnails in {segment.name}")
            self.sealed[segment.name] = numbers
        self.open: list[int] = store.state().get("open", torch.empty(0)).long().tolist()
        for number, payload in store.replay():
            if payload != record(number) or unpack(payload)[1] != {"number": number}:
                raise AssertionError(f"record {number} is not what was appended")
            self.take(number)

    def take(self, number: int) -> None:
        """Hold a record, and let go of the oldest segment beyond the bound."""
        self.open.append(number)
        if len(self.open) == ROWS:
            self.sealed[f"s{self.open[0]}"] = self.open
            self.open = []
        while len(self.sealed) > SEGMENTS:
            del self.sealed[next(iter(self.sealed))]

    def numbers(self) -> list[int]:
        """Every record that is held, oldest first."""
        return [n for numbers in self.sealed.values() for n in numbers] + self.open

    def commit(self) -> None:
        """Commit all of it."""
        segments = {
            name: SegmentData(
                {"number": torch.tensor(numbers)}, [content(n) for n in numbers], 0.0, 1.0
            )
            for name, numbers in self.sealed.items()
        }
        self.store.commit(segments, {"open": torch.tensor(self.open, dtype=torch.int64)})

    def write(self) -> int:
        """Append the next record, take it, and commit every now and then."""
        held = self.numbers()
        number = self.store.append(record(held[-1] + 1 if held else 0))
        self.take(number)
        if number % COMMIT_EVERY == 0:
            self.commit()
        return number


@dataclass
class Recovery:
    """How one opening went: records acknowledged, one past the last found, bytes cut, seconds."""

    acknowledged: int
    found: int
    cut: int
    seconds: float


def recover(path: Path, acknowledged: int) -> Recovery:
    """Open a store after a crash and look for every record.

    Raises:
        AssertionError: If one is missing, changed or there twice.
    """
    start = time.perf_counter()
    store = MemoryStore.open(path)
    seconds = time.perf_counter() - start
    with store:
        numbers = Recent(store).numbers()
        found = numbers[-1] + 1 if numbers else 0
        if numbers != list(range(found - len(numbers), found)):
            raise AssertionError(f"a record is missing or there twice: {numbers}")
        if found < acknowledged:
            raise AssertionError(f"{acknowledged} acknowledged, {found} found")
        if len(numbers) < min(found, ROWS * SEGMENTS):
            raise AssertionError(f"only {len(numbers)} of {found} records are held")
        cut, lost = store.cut, store.lost
    report = verify(path)
    if lost or report.problems or report.orphans:
        raise AssertionError(f"left behind: {lost} {report}")
    return Recovery(acknowledged, found, cut, seconds)


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Start a child that runs ``work(pipe)``; gives its pid and the pipe to read from."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    try:
        work(writer)
        os._exit(0)
    except BaseException:
        os._exit(1)


def said_before_kill(work: Callable[[int], None], after: float) -> bytes:
    """Let a child run ``work(pipe)``, kill it ``after`` seconds from its first eight bytes.

    Returns:
        All that it said until then.
    """
    pid, pipe = in_child(work)
    said = os.read(pipe, 8)
    time.sleep(after)  # the random moment itself, not a wait for something
    os.kill(pid, signal.SIGKILL)
    while piece := os.read(pipe, 1 << 16):
        said += piece
    os.close(pipe)
    os.waitpid(pid, 0)
    return said


def kill_once(path: Path, after: float, acknowledged: int) -> Recovery:
    """Let a child write to a store, kill it some time after its first acknowledgement, recover."""

    def work(pipe: int) -> None:
        memory = Recent(MemoryStore.open(path))
        while True:
            os.write(pipe, memory.write().to_bytes(8, "little"))

    heard = said_before_kill(work, after)
    last = int.from_bytes(heard[-8:], "little") + 1 if heard else acknowledged
    return recover(path, last)


def kills(path: Path, count: int, seed: int) -> list[Recovery]:
    """Kill ``count`` writers of one store, one after the other."""
    MemoryStore.create(path, encoder={"model": "none"}, config={}).close()
    dice = random.Random(seed)
    results: list[Recovery] = []
    for _ in range(count):
        known = results[-1].found if results else 0
        results.append(kill_once(path, dice.uniform(0.0, 0.15), known))
    return results


def torn(path: Path, count: int, seed: int) -> tuple[int, int]:
    """Cut the tail or write garbage behind it, ``count`` times; records kept and bytes cut."""
    dice = random.Random(seed)
    with MemoryStore.create(path, encoder={}, config={}) as store:
        memory = Recent(store)
        for _ in range(ROWS):
            memory.take(store.append(record(len(memory.numbers()))))
        ends = [12]
        for _, payload in store.replay():
            ends.append(ends[-1] + 8 + len(payload))
    tail = path / "tail_000000.log"
    whole = tail.read_bytes()
    kept = cut = 0
    for _ in range(count):
        size = dice.randrange(12, len(whole) + 1)
        garbage = dice.randbytes(dice.choice([0, 1, 7, 8, 9, 64, 5000]))
        tail.write_bytes(whole[:size] + garbage)
        with MemoryStore.open(path) as store:
            expected = sum(end <= size for end in ends) - 1
            if [payload for _, payload in store.replay()] != [record(n) for n in range(expected)]:
                raise AssertionError(f"{expected} records were whole, {store.records} came back")
            kept, cut = kept + expected, cut + store.cut
    return kept, cut


def fill(path: Path, until: Callable[[], None], room: Callable[[], None]) -> tuple[int, int]:
    """Write until the disk is full, make room, go on; gives failures met and records found."""
    with MemoryStore.create(path, encoder={}, config={}) as store:
        memory = Recent(store)
        failures = written = 0
        until()
        for attempt in range(400):
            try:
                written = memory.write() + 1
            except StoreError as error:
                if "disk is full" not in str(error):
                    raise
                failures += 1
                if attempt >= 200:
                    room()
        memory.commit()
        held = memory.numbers()
        if not held or failures == 0 or held[-1] + 1 < written:
            raise AssertionError("the disk was never full")
    return failures, recover(path, written).found


def full_disk(directory: Path) -> str:
    """Fill a small tmpfs; where mounting is not allowed, limit the size of files instead."""
    mount = directory / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode == 0:
        try:
            ballast = mount / "ballast"
            ballast.write_bytes(bytes(450_000))
            failures, found = fill(
                mount / "full.mem",
                lambda: None,
                lambda: ballast.unlink(missing_ok=True),
            )
        finally:
            subprocess.run(["umount", str(mount)], check=True)
        return f"tmpfs of 600 kB: {failures} calls failed, {found} records found, 0 lost"
    failures, found = limited_files(directory / "limited.mem")
    return f"no mount here, RLIMIT_FSIZE: {failures} calls failed, {found} records found, 0 lost"


def limited_files(path: Path) -> tuple[int, int]:
    """The same with a limit on the size of any file, which needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        return fill(path, lambda: limit(9_000), lambda: limit(soft))
    finally:
        limit(soft)


def large(path: Path, moments: int) -> dict[str, float]:
    """Time the opening of a memory of many moments with columns of their real width."""
    rows = 1500
    generator = torch.Generator().manual_seed(0)
    thumbnails = [os.urandom(3000)] * rows
    columns = {
        "start": torch.arange(rows, dtype=torch.float64),
        "end": torch.arange(rows, dtype=torch.float64) + 1,
        "embedding": torch.randn(rows, 384, generator=generator).half(),
        "label": torch.zeros(rows, 64, dtype=torch.int64),
        "score": torch.zeros(rows, 64),
        "box": torch.zeros(rows, 64, 4, dtype=torch.float16),
        "tokens": torch.randn(rows, 16, 320, generator=generator).half(),
    }
    with MemoryStore.create(path, encoder={}, config={}) as store:
        names = [f"s{i:04d}" for i in range(-(-moments // rows))]
        data = SegmentData(columns, thumbnails, 0.0, float(rows))
        start = time.perf_counter()
        store.commit(dict.fromkeys(names, data), {"open": torch.zeros(1 << 18)})
        commit = time.perf_counter() - start
        for number in range(500):
            store.append(record(number))
        size = sum(store.nbytes.values())
    times, cpu = [], []
    for _ in range(7):
        start, used = time.perf_counter(), time.process_time()
        store = MemoryStore.open(path)
        times.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
        rows_open = sum(segment.rows for segment in store.segments())
        store.close()
    store = MemoryStore.open(path, read_only=True)
    start = time.perf_counter()
    total = sum(float(segment.columns["start"].sum()) for segment in store.segments())
    times_read = time.perf_counter() - start
    store.close()
    payload = pack({"tokens": columns["tokens"][0], "embedding": columns["embedding"][0]}, {})
    with MemoryStore.open(path) as store:
        used = time.process_time()
        for _ in range(1000):
            store.append(payload)
        append = (time.process_time() - used) / 1000
    return {
        "moments": rows_open,
        "MiB on disk": size / 2**20,
        "commit of it all, s": commit,
        "open, median s": statistics.median(times),
        "open, worst s": max(times),
        "open, cpu s": statistics.median(cpu),
        "read one column of all, s": times_read if total else 0.0,
        "append of 12 kB, cpu ms": append * 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--moments", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="on the medium to test; default: temporary")
    args = parser.parse_args()
    torch.set_num_threads(1)
    directory = Path(tempfile.mkdtemp(prefix="vismem-crash-", dir=args.directory))
    try:
        results = kills(directory / "killed.mem", args.kills, args.seed)
        cuts = [result.cut for result in results if result.cut]
        times = [result.seconds for result in results]
        print(
            f"kill -9         {len(results)} kills, {results[-1].acknowledged} records "
            f"acknowledged, 0 lost, 0 twice; {results[-1].found} found; "
            f"torn bytes cut {sum(cuts)} in {len(cuts)} openings; "
            f"reopen median {statistics.median(times):.4f} s, worst {max(times):.4f} s"
        )
        kept, cut = torn(directory / "torn.mem", 200, args.seed)
        print(f"torn tails      200 cut or garbage tails: {kept} whole records kept, {cut} B cut")
        print(f"full disk       {full_disk(directory)}")
        for name, value in large(directory / "large.mem", args.moments).items():
            print(f"large memory    {name:28s} {value:10.4g}")
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
