"""The table of who may import whom, held against the source: the drawing that cannot go stale."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOST = ROOT / "edgecompress"
AGENT = ROOT / "bench_remote"

# What each room may import of ours, besides the ground that all stand on.
GROUND = {"errors", "records", "plugins", "__init__"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "plugins": set(),
    "disk": set(),
    "quiet": set(),
    "schema": {"disk"},
    "traces": {"schema"},
    "phases": {"schema"},
    "records": {"disk", "phases", "schema", "traces"},
    "paths": set(),
    "plain": set(),
    "audio": set(),
    "sources": set(),
    "faults": set(),
    "job": set(),
    "recipe": {"faults", "job"},
    "transcript": set(),
    "model": {"sources", "transcript"},
    "cost": set(),
    "training": {"audio", "paths"},
    "techniques": {"cost", "job", "training"},  # the driver notes the cost before and after each step; rounds recover
    # an artifact's record has its cost; files made elsewhere; room on the disk; how a decoder's answers become words
    "exporters": {"cost", "disk", "plain", "quiet", "transcript"},
    "tasks": {"audio", "paths"},
    "runtimes": set(),
    "devices": set(),
    "session": {"devices", "phases", "plain", "runtimes", "traces"},
    "stats": set(),
    "advice": {"devices", "session", "stats", "quiet", "report"},  # measures files on the device; the report's caveats
    "energy": {"traces"},
    "validity": {"phases", "stats"},
    "proxies": {"stats"},
    "report": {"proxies", "stats", "validity"},
    "comparing": {
        "devices",
        "plain",
        "report",
        "schema",
        "session",
        "stats",
        "validity",
    },  # the report's caveats void a block
    # makes probe models, exports and measures them; the report's caveats
    "predicting": {"devices", "exporters", "model", "plain", "report", "session", "stats", "techniques"},
    "analysis": {"report", "stats", "techniques"},  # asks the techniques themselves what they would remove; same page
}
ANYTHING = {"pipeline", "doctor", "cli", "__init__"}
# A Model is handed to these, and they speak of its type and of the few kinds of module that it is made of.
HANDLE_MODELS = {"cost", "techniques", "training", "exporters", "tasks", "analysis"}
MAY_IMPORT_TORCH = {"model", "cost", "techniques", "training", "tasks", "exporters", "analysis"}
# Slow to import or in an extra: only inside the functions that use them.
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "plotly", "paramiko", "scipy", "rich", "jinja2", "jiwer",
         "soundfile", "soxr", "openvino", "nncf", "sklearn", "kaldi_native_fbank",
         "litert_torch", "ai_edge_litert", "ai_edge_quantizer", "jax", "tflite_runtime"}  # fmt: skip


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(HOST).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imports below ``tree``; of ``from a import b`` both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def our_rooms(tree: ast.AST) -> set[str]:
    """Rooms of ours that are imported anywhere below ``tree``."""
    known = set(ROOMS) | ANYTHING
    found = set()
    for name in imports(tree):
        parts = name.split(".")
        if parts[0] == "edgecompress" and len(parts) > 1 and parts[1] in known:
            found.add(parts[1])
    return found


def at_import_time(tree: ast.Module) -> ast.Module:
    """The module without function bodies and ``if TYPE_CHECKING:`` blocks: what runs when it is imported."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(ast.parse(ast.unparse(tree)))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_every_room_is_in_the_table() -> None:
    there = {room_of(path) for path in sources(HOST)}
    assert there - set(ROOMS) - ANYTHING == set()


@pytest.mark.parametrize("path", sources(HOST), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_the_table_allows(path: Path) -> None:
    room = room_of(path)
    if room in ANYTHING:
        return
    allowed = ROOMS[room] | GROUND | {room} | ({"model"} if room in HANDLE_MODELS else set())
    assert our_rooms(parsed(path)) - allowed == set()


@pytest.mark.parametrize("path", sources(HOST), ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_a_module_loads_nothing_heavy_that_its_room_is_not_about(path: Path) -> None:
    room = room_of(path)
    heavy = {name.split(".")[0] for name in imports(at_import_time(parsed(path)))} & HEAVY
    allowed = {"torch"} if room in MAY_IMPORT_TORCH else set()
    if room == "model" and path.stem == "melhubert":  # derives from the library's classes; loaded by who asks for it
        allowed |= {"transformers"}
    if room == "exporters" and path.stem != "__init__":
        allowed |= {"onnx", "onnxruntime"}
    if room == "devices" and path.stem != "__init__":  # loaded when a device of that transport is opened
        allowed |= {"paramiko"}
    assert heavy - allowed == set()


@pytest.mark.parametrize("path", sources(HOST), ids=lambda path: str(path.relative_to(ROOT)))
def test_torch_is_imported_only_where_models_are(path: Path) -> None:
    if room_of(path) not in MAY_IMPORT_TORCH:
        assert {name.split(".")[0] for name in imports(parsed(path))} & {"torch", "transformers"} == set()


@pytest.mark.parametrize("path", sources(AGENT), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_agent_is_python_38_and_imports_nothing_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path), feature_version=(3, 8))
    runs_at_import = {name.split(".")[0] for name in imports(at_import_time(tree))}
    assert runs_at_import <= set(sys.stdlib_module_names) | {"bench_remote"}
    assert "edgecompress" not in {name.split(".")[0] for name in imports(tree)}


@pytest.mark.parametrize("path", sources(HOST) + sources(AGENT), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_and_the_agent_print_or_exit(path: Path) -> None:
    if path.is_relative_to(AGENT) or room_of(path) == "cli":
        return
    calls = [ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    assert [call for call in calls if call in ("print", "sys.exit", "exit", "quit")] == []


@pytest.mark.parametrize("path", sources(HOST) + sources(AGENT), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_outgrows_a_mind(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "module",
    ["edgecompress", "edgecompress.cli.app", "edgecompress.report", "edgecompress.session", "edgecompress.transcript"],
)
def test_help_bench_and_report_do_not_wait_for_torch(module: str) -> None:
    code = f"import sys, {module}; assert not {{'torch', 'transformers', 'plotly', 'onnxruntime'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
