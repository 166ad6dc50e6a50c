# SPDX-License-Identifier: Apache-2.0
"""Describe `jumiks._core` to cffi: the interface is cut out of the C header itself.

setup.py names `ffibuilder` and adds the compiler's flags.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
BEGIN = "/* cdef: begin */"
END = "/* cdef: end */"


def cut_cdef(header: str) -> str:
    """Return what stands between the two marks of a header.

    Args:
        header: the text of the header.

    Raises:
        ValueError: the marks are not there exactly once, or a preprocessor line is between them.
    """
    if header.count(BEGIN) != 1 or header.count(END) != 1:
        raise ValueError(f"the header needs {BEGIN!r} and {END!r} once each")
    region = header.partition(BEGIN)[2].partition(END)[0]
    for line in region.splitlines():
        if line.lstrip().startswith("#"):
            raise ValueError(f"cffi knows no preprocessor, so this cannot be in the cdef: {line!r}")
    return region


def core_sources() -> list[str]:
    """Return the C files, as paths from the project's root; `_objects` is in the same library.

    Those of connect/ are for libjumiks alone: Python connects by itself.
    """
    files = [path for path in sorted(HERE.glob("*/*.c")) if path.parent.name != "connect"]
    return [f"{HERE.name}/{path.relative_to(HERE)}" for path in files]


def core_headers() -> list[str]:
    """Return all headers, likewise."""
    return [f"{HERE.name}/{path.relative_to(HERE)}" for path in sorted(HERE.rglob("*.h"))]


def ffibuilder() -> FFI:
    """Make the description that cffi builds from."""
    ffi = FFI()
    ffi.cdef(cut_cdef((HERE / "jumiks.h").read_text("utf-8")))
    ffi.set_source(
        "jumiks._core",
        '#include "jumiks.h"',
        sources=core_sources(),
        depends=core_headers(),
        include_dirs=[HERE.name],
    )
    return ffi
