"""Stand-ins for `lrzip` and `zpaq`: executables on PATH that take the same arguments and pack with zlib."""

import os
import stat
import sys

LRZIP = """
import pathlib, sys, zlib
options, source = sys.argv[1:-1], pathlib.Path(sys.argv[-1])
target = pathlib.Path(options[options.index("-o") + 1])
data = source.read_bytes()
if "-d" in options:
    if not data.startswith(b"LRZI"):
        sys.exit("Not an lrzip file")
    target.write_bytes(zlib.decompress(data[4:]))
else:
    assert options[options.index("-z") :][:3] == ["-z", "-L", "9"], options
    target.write_bytes(b"LRZI" + zlib.compress(data, 9))
print("Average Speed", file=sys.stderr)
"""
ZPAQ = """
import pathlib, sys, zlib
command, archive, *rest = sys.argv[1:]
if command == "add":
    assert "-m5" in rest, rest
    pathlib.Path(archive).write_bytes(zlib.compress(pathlib.Path(rest[0]).read_bytes(), 9))
else:
    assert command == "extract", command
    folder = pathlib.Path(rest[rest.index("-to") + 1])
    folder.mkdir()
    (folder / "in").write_bytes(zlib.decompress(pathlib.Path(archive).read_bytes()))
"""


def install(monkeypatch, folder, **programs):
    """Put programs, name=source in Python, into `folder` and that in front of PATH."""
    folder.mkdir(exist_ok=True)
    for name, source in programs.items():
        path = folder / name
        path.write_text(f"#!{sys.executable} -IS\n{source}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def hide(monkeypatch, folder):
    """A PATH without any program."""
    monkeypatch.setenv("PATH", str(folder))
