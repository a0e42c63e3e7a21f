"""The agent as one file: a zip of ``bench_remote`` and strangers' runtimes. Its bytes depend on its contents alone."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from importlib.resources import files

from edgecompress.devices import Blob
from edgecompress.runtimes import Runtime

START = "import sys\nfrom bench_remote.__main__ import main\nsys.exit(main())\n"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's own; a clock in the file would change its name at every build


def build(runtimes: Iterable[Runtime] = ()) -> Blob:
    """The zip, ready to be put; run it as ``python3 <file>``."""
    members = {"__main__.py": START.encode()}
    for entry in files("bench_remote").iterdir():
        if entry.name.endswith(".py"):
            members[f"bench_remote/{entry.name}"] = entry.read_bytes()
    for runtime in runtimes:
        if runtime.source is not None:
            members[f"{runtime.module}.py"] = runtime.source.read_bytes()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            entry_info = zipfile.ZipInfo(name, EPOCH)
            entry_info.compress_type = zipfile.ZIP_DEFLATED
            entry_info.create_system = 3
            entry_info.external_attr = 0o644 << 16
            archive.writestr(entry_info, members[name])
    return Blob.of(stream.getvalue())
