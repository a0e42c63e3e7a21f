"""How fast exported files run, ours beside those that others make of the same weights, taking turns in one run.

    python -m benchmarks.export_speed --work DIR [--only 'onnxruntime*'] [--threads 1 2] [--rounds 4]
                                      [--optimum-env DIR] [--json FILE] [--markdown FILE]

HuBERT base with random weights, five seconds of audio, batch 1. Every candidate (``candidates``) is opened in a process
of its own (``blocks``). In each round every one of them runs a block: one inference that is not counted, then five that
are. The order is drawn by lot and reversed in the next round. A candidate's figure is the median of its blocks'
medians; a ratio is the median over rounds of the ratio within a round, with an interval by bootstrap over rounds that is
never narrower than Student's over their logarithms. Those that compute in floats run together, then those with smaller
weights beside our fp32 files again: all at once would not fit in 16 GB.

Files are made first, in processes of their own, and stay in ``--work`` for the next run while tools and sources stay
the same. Our fp32 exports are made one after the other with nothing beside them: their time and memory are checked.
``--optimum-env`` makes (some minutes, pip), or uses, an environment with optimum-onnx, which cannot live beside ours.

Checks: ours against the best of the others at the same precision; int8 against our own fp32 (where the processor has
VNNI); conversion; and what share of the cores' measured peak (``roofline``) the best run uses. Ends with 1 if one
fails. Linux; on two quiet cores some ten minutes with files, five without. Other work on the machine is told, not
corrected for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fnmatch
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import blocks, candidates, roofline
from benchmarks.candidates import Candidate, Facts, Recipe
from edgecompress import stats

INFERENCES = 5  # in a block
QUIET_OTHERS = 0.05  # more of the machine than this used by others: not quiet
FLOATS = ("fp32", "bf16")
INTEGERS = ("int8", "int8-static")
NOT_WORSE, CONVERSION_S, CONVERSION_BYTES = 1.03, 40.0, 3 * 2**30
SPEED_UPS = {"openvino": 2.8, "tflite": 2.2, "onnxruntime": 1.8}
MAKING_S = 900
AT_ONCE = 2  # files made, or opened, at a time: what is not timed


# --- files -----------------------------------------------------------------------------------------------------------
def make_all(
    work: Path, rows: Sequence[Candidate], recipes: dict[str, Recipe], optimum: Path | None
) -> dict[str, Facts]:
    """By recipe what ``made.json`` says, or ``error``. What is timed is made alone, the rest two at a time."""
    wanted: dict[str, Recipe] = {}

    def want(name: str) -> None:
        for need in recipes[name].needs:
            want(need)
        wanted.setdefault(name, recipes[name])

    for row in rows:
        want(row.recipe)
    found: dict[str, Facts] = {}

    def make(name: str) -> Facts:
        return _make(name, wanted[name], work, optimum, found)

    for jobs, timed in ((1, True), (AT_ONCE, False)):
        names = [name for name in wanted if wanted[name].timed is timed or name == "model"]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            while left := [name for name in names if name not in found]:
                ready = [name for name in left if all(need in found for need in wanted[name].needs)]
                found |= dict(zip(ready, list(pool.map(make, ready)), strict=True))
    return found


def _make(name: str, recipe: Recipe, work: Path, optimum: Path | None, found: dict[str, Facts]) -> Facts:
    broken = next((need for need in recipe.needs if "error" in found[need]), None)
    if broken:
        return {"error": f"{broken}: {found[broken]['error']}"}
    there = candidates.made(work, name, recipe)
    if there is not None:
        return {**there, "made_before": True}
    shutil.rmtree(work / name, ignore_errors=True)
    (work / name).mkdir(parents=True)
    say(f"making {name}")
    line = [sys.executable, "-m", "benchmarks.candidates", name, str(work), *([str(optimum)] if optimum else [])]
    log = work / name / "log.txt"
    with log.open("wb") as heard:
        try:
            code = subprocess.run(line, cwd=candidates.ROOT, stdout=heard, stderr=heard, timeout=MAKING_S).returncode
        except subprocess.TimeoutExpired:
            return {"error": f"not made within {MAKING_S} s"}
    if code:
        return {"error": blocks.last_line(log.read_text(errors="replace")) or f"ended with status {code}"}
    return candidates.made(work, name, recipe) or {"error": "no file was made"}


def as_made(row: Candidate, facts: Facts) -> list[Candidate]:
    """The row, and one that no check counts for what parity made an export give up; where that was all, it says so."""
    refused = replace(row, label="ours, refused by parity")
    if "first" in facts:
        return [row, replace(refused, judged=False, which="first")]
    return [refused if "refused" in facts else row]


# --- rounds ----------------------------------------------------------------------------------------------------------
Block = dict[str, Any]  # what blocks.Contestant.block says, with candidate, threads, round


def waves(rows: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Who runs together: floats, then all others beside our fp32."""
    floats = [row for row in rows if row.precision in FLOATS]
    others = [row for row in rows if row.precision not in FLOATS]
    if floats:
        yield floats
    if others:
        yield [row for row in floats if row.ours] + others


def measured(
    work: Path, rows: Sequence[Candidate], files: dict[str, Facts], threads: int, rounds: int, opened: dict[str, Facts]
) -> Iterator[Block]:
    """All blocks at a number of threads. ``opened`` is told, by candidate, what its process said, or ``error``."""

    def open_one(row: Candidate) -> tuple[str, blocks.Contestant | None]:
        facts, one = files[row.recipe], None
        try:
            if "error" in facts:
                raise blocks.Dead(facts["error"])
            one = blocks.Contestant(row, work / row.recipe / facts[row.which], threads, work)
            one.ready()
            opened[row.name] = one.told
            return row.name, one
        except blocks.Dead as why:
            opened[row.name] = {"error": str(why)}
            if one is not None:
                one.end()
            return row.name, None

    for number, wave in enumerate(waves(rows)):
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            running = {name: one for name, one in pool.map(open_one, wave) if one is not None}
        try:
            for block in _rounds(running, rounds, opened):
                yield block | {"threads": threads, "round": f"{number}.{block['round']}"}
        finally:
            for one in running.values():
                one.end()


def _rounds(running: dict[str, blocks.Contestant], rounds: int, opened: dict[str, Facts]) -> Iterator[Block]:
    lot, order = random.Random(0), list(running)
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}, {len(running)} candidates; load {os.getloadavg()[0]:.1f}")
        if number % 2:
            order.reverse()
        else:
            lot.shuffle(order)
        for name in [name for name in order if name in running]:
            try:
                block = running[name].block(INFERENCES)
            except blocks.Dead as why:
                opened[name] = {"error": str(why)}
                running.pop(name).end()
                continue
            yield block | {"candidate": name, "round": number, "load_1min": os.getloadavg()[0]}


# --- what it means ---------------------------------------------------------------------------------------------------
class Times:
    """Blocks of a run, by threads and candidate."""

    def __init__(self, found: Sequence[Block]) -> None:
        self.medians: dict[tuple[int, str], dict[str, float]] = {}
        for block in found:
            of = self.medians.setdefault((block["threads"], block["candidate"]), {})
            of[block["round"]] = statistics.median(block["ns"]) / 1e6

    def ms(self, threads: int, name: str) -> float | None:
        """Median of the blocks' medians; None if it did not run."""
        found = self.medians.get((threads, name))
        return statistics.median(found.values()) if found else None

    def ratio(self, threads: int, above: str, below: str) -> stats.Estimate | None:
        """Time of one over time of the other, over the rounds that both were in; None if there was none."""
        one, other = self.medians.get((threads, above), {}), self.medians.get((threads, below), {})
        each = [[one[key] / other[key]] for key in one if key in other]
        return stats.median(each) if each else None

    def best(self, threads: int, rows: Sequence[Candidate]) -> Candidate | None:
        """The fastest of some; None if none of them ran."""
        timed = [(ms, place) for place, row in enumerate(rows) if (ms := self.ms(threads, row.name)) is not None]
        return rows[min(timed)[1]] if timed else None


def check(what: str, value: float | None, sense: str, limit: float, **more: Any) -> Facts:
    """``kept`` is None where there is nothing to judge by."""
    kept = None if value is None else (value <= limit if sense == "at most" else value >= limit)
    return {"what": what, "value": value, "asked": f"{sense} {limit:g}", "kept": kept, **more}


def of_ratio(what: str, found: stats.Estimate | None, sense: str, limit: float, **more: Any) -> Facts:
    if found is None:
        return check(what, None, sense, limit, **more)
    return check(what, found.value, sense, limit, low=found.low, high=found.high, **more)


def speed_checks(times: Times, rows: Sequence[Candidate], threads: Sequence[int], vnni: bool) -> Iterator[Facts]:
    """Ours against others at the same precision, in each runtime and wherever they are fastest; int8 against fp32."""
    rows = [row for row in rows if row.judged]
    groups = [(runtime, {precision}) for runtime in SPEED_UPS for precision in (*FLOATS, *INTEGERS)]
    groups += [("any runtime", {"fp32"}), ("any runtime", set(INTEGERS))]
    for count in threads:
        for runtime, precisions in groups:
            fit = [row for row in rows if row.precision in precisions and runtime in (row.runtime, "any runtime")]
            sides = [[row for row in fit if row.ours], [row for row in fit if not row.ours and row.runtime != "torch"]]
            if not all(sides):
                continue
            ours, others = (times.best(count, side) for side in sides)
            ratio = times.ratio(count, ours.name, others.name) if ours and others else None
            words = f"{runtime} {' or '.join(sorted(precisions))}, {_threads(count)}: ours / best of the others"
            yield of_ratio(words, ratio, "at most", NOT_WORSE, ours=ours and ours.name, others=others and others.name)
        for runtime, limit in SPEED_UPS.items():
            own = [row for row in rows if row.ours and row.runtime == runtime]
            full, small = (
                times.best(count, [row for row in own if row.precision in precisions])
                for precisions in (("fp32",), INTEGERS)
            )
            ratio = times.ratio(count, full.name, small.name) if full and small else None
            words = f"{runtime}, {_threads(count)}: our fp32 / our int8"
            if not vnni:
                words, ratio = f"{words} (no VNNI here)", None
            yield of_ratio(words, ratio, "at least", limit, ours=small and small.name)


def conversion_checks(files: dict[str, Facts]) -> Iterator[Facts]:
    made = {name: files.get(name, {}) for name in (f"ours-{format}-fp32" for format in candidates.RUNTIMES)}
    each = [facts.get("write_s") for facts in made.values()]
    total = None if None in each else sum(each)  # type: ignore[arg-type]
    yield check("fp32 in all three formats, written (s)", total, "at most", CONVERSION_S, each=each)
    for name, facts in made.items():
        peak = facts.get("peak_rss_bytes")
        words = f"{name}: peak memory (GiB)"
        yield check(words, peak and peak / 2**30, "at most", CONVERSION_BYTES / 2**30)


def shares(times: Times, rows: Sequence[Candidate], roofs: dict[int, Any], macs: int) -> Iterator[Facts]:
    """Multiply-accumulates per second of the best runs, over the most that any matrix product reached in this run."""
    for threads, roof in roofs.items():
        for precision, kinds in (("fp32", ("fp32",)), ("int8", INTEGERS)):
            best = times.best(threads, [row for row in rows if row.judged and row.precision in kinds])
            if best is None or precision not in roof:
                continue
            rate = macs / 1e6 / float(times.ms(threads, best.name) or 0)
            peak = roof[precision]["gmacs_per_s"]
            yield {"threads": threads, "precision": precision, "best": best.name, "gmacs_per_s": rate,
                   "peak_gmacs_per_s": peak, "peak_by": roof[precision]["library"], "share": rate / peak}  # fmt: skip


# --- what is printed -------------------------------------------------------------------------------------------------
def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def table(
    times: Times, rows: Sequence[Candidate], files: dict[str, Facts], opened: dict[int, dict[str, Facts]]
) -> Iterator[str]:
    """A row for each candidate, Markdown."""
    heads = [f"{_threads(count)}, ms | × torch" for count in opened]
    columns = ["runtime", "precision", "file", *heads, "peak RSS, MB", "file, MiB", "1 - cosine", "greatest difference"]
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + len(heads)) + "|"
    for row in rows:
        name = f"**{row.label}**" if row.ours else row.label
        cells = [row.runtime, row.precision, name]
        told = [found.get(row.name, {}) for found in opened.values()]
        error = next((each["error"] for each in told if "error" in each), None)
        if error is not None:
            yield f"| {' | '.join(cells)} | did not run: {error.replace('|', '/')} |"
            continue
        for count in opened:
            ms, base = times.ms(count, row.name), times.ms(count, "torch fp32 eager")
            cells += [f"{ms:.1f}" if ms else "", f"{base / ms:.2f}" if ms and base else ""]
        peak = max((each.get("peak_rss_bytes", 0) for each in told), default=0)
        cells += [f"{peak / 1e6:.0f}", f"{files[row.recipe]['bytes'][row.which] / 2**20:.0f}"]
        yield f"| {' | '.join(cells)} | {told[0]['one_minus_cosine']:.1e} | {told[0]['greatest_difference']:.1e} |"


def page(result: Facts, lines: Iterator[str]) -> str:
    """The whole report, Markdown."""
    text = [
        *lines,
        "",
        "Weights are random: 1 - cosine to torch says how near a file computes, nothing about a task.",
        "",
    ]
    text += ["| check | value | interval | asked | kept |", "|---|---|---|---|---|"]
    for one in result["checks"]:
        value = "not measured" if one["value"] is None else f"{one['value']:.3f}"
        spread = f"{one['low']:.3f} to {one['high']:.3f}" if one.get("low") is not None else ""
        word = {True: "pass", False: "**FAIL**", None: ""}[one["kept"]]
        which = f" ({one['ours']} / {one['others']})" if one.get("others") else ""
        text.append(f"| {one['what']}{which} | {value} | {spread} | {one['asked']} | {word} |")
    text.append("")
    for one in result["shares"]:
        text.append(
            f"- {_threads(one['threads'])}, {one['precision']}: {one['best']} does {one['gmacs_per_s']:.0f} GMAC/s, "
            f"{one['share']:.0%} of the {one['peak_gmacs_per_s']:.0f} that {one['peak_by']} reached in a matrix product"
        )
    for name, facts in result["files"].items():
        if "refused" in facts:
            text.append(f"- **{name}, as first written, does not pass its parity check**: {facts['refused']}")
        if "export_s" in facts and name.endswith("-fp32"):
            text.append(
                f"- {name}: written in {facts['write_s']:.1f} s, {facts['export_s']:.1f} s with parity, peak "
                f"{facts['peak_rss_bytes'] / 2**30:.2f} GiB; {facts['cpu_s']:.0f} s of processor in all, load {facts['load_1min']:.1f}"
                + (f"; made before, {facts['at']}" if facts.get("made_before") else "")
            )
    quiet = "" if result["quiet"] else "**The machine was not quiet: times are too long and checks mean little.** "
    text.append(f"- {quiet}Others used {result['others']:.0%} of the processor while blocks ran; load at the start "
                f"{result['load_1min']:.1f}; {os.cpu_count()} cores.")  # fmt: skip
    return "\n".join(text) + "\n"


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def has_vnni() -> bool:
    """Whether the processor multiplies and adds bytes in one instruction (x86 only)."""
    flags = Path("/proc/cpuinfo").read_text()
    return "avx512_vnni" in flags or "avx_vnni" in flags


def run(work: Path, only: str, threads: Sequence[int], rounds: int, optimum: Path | None) -> tuple[Facts, str]:
    """Everything: the result as data, and as a page."""
    load = os.getloadavg()[0]
    known, recipes = candidates.candidates(optimum)
    rows = [row for row in known if fnmatch.fnmatch(row.name, only)]
    if not rows:
        raise SystemExit(f"error: no candidate is like {only!r}; there are: {', '.join(row.name for row in known)}")
    files = make_all(work, rows, recipes, optimum)
    rows = [row for known_row in rows for row in as_made(known_row, files[known_row.recipe])]
    roofs, found = {}, []
    opened: dict[int, dict[str, Facts]] = {}
    for count in threads:
        say(f"{_threads(count)}: the roof, then {rounds} rounds")
        roofs[count] = roofline.peak(count)
        opened[count] = {}
        found += list(measured(work, rows, files, count, rounds, opened[count]))
    for block in found:
        told = opened[block["threads"]][block["candidate"]]
        told["peak_rss_bytes"] = max(told.get("peak_rss_bytes", 0), block["peak_rss_bytes"])
    times, others = Times(found), statistics.fmean(block["others"] for block in found) if found else 0.0
    result = {
        "load_1min": load, "others": others, "quiet": others <= QUIET_OTHERS, "inferences": INFERENCES, "rounds": rounds,
        "rows": [{**asdict(row), "name": row.name} for row in rows], "files": files, "opened": opened, "roofs": roofs,
        "checks": [*speed_checks(times, rows, threads, has_vnni()), *conversion_checks(files)],
        "shares": list(shares(times, rows, roofs, files["model"].get("macs", 0))), "blocks": found,
    }  # fmt: skip
    return result, page(result, table(times, rows, files, opened))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where files are made and kept (2 to 8 GB); forgotten if not given")
    parser.add_argument("--only", default="*", help="pattern of 'runtime precision label'")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--optimum-env", type=Path, help="environment with optimum-onnx; made if it is not there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    optimum = asked.optimum_env and asked.optimum_env.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        work = (asked.work or Path(scratch)).resolve()
        result, text = run(work, asked.only, asked.threads, asked.rounds, optimum)
    print(text)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(one["kept"] is False for one in result["checks"]))


if __name__ == "__main__":
    sys.exit(main())
