"""Builds what is compiled; all else is in pyproject.toml.

An extension that cannot be built, for want of a C compiler say, is left out: Python then does the same, slower, and the
service says so when it starts.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCES = (
    "bundle/compiled.pyx",
    "fusion/compiled.pyx",
    "service/compiled_tally.pyx",
    "service/wire/compiled_json.pyx",
    "service/wire/compiled_arrow.pyx",
    "training/compiled.pyx",
)

OPERATORS = Extension(
    "bundle.operators.native",
    ["bundle/operators/native.pyx", "bundle/operators/kernels.c", "bundle/operators/operators.c"],
    depends=["bundle/operators/kernels.h", "bundle/operators/onnxruntime_abi.h"],
    include_dirs=["bundle/operators"],
)

EXTENSIONS = cythonize(
    # the image has no training
    [*(Extension(source[:-4].replace("/", "."), [source]) for source in SOURCES if Path(source).exists()), OPERATORS],
    build_dir="build",
)
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g", "-O1"]
sanitize = os.environ.get("DLEN_SANITIZE") == "1"  # `make sanitize`
for extension in EXTENSIONS:
    extension.optional = not sanitize  # cythonize forgets it
    extension.extra_compile_args = SANITIZE if sanitize else ["-g0", "-O3"]  # without symbols in half the time
    extension.extra_compile_args += ["-Wno-psabi"] if extension.name == OPERATORS.name else []
    extension.extra_link_args = SANITIZE[:1] if sanitize else []

setup(ext_modules=EXTENSIONS)
