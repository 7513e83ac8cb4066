"""Builds what is compiled; all else is in pyproject.toml.

An extension that cannot be built, for want of a C compiler say, is left out: Python then does the same, slower, and the
service says so when it starts.
"""

from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

SOURCES = ("bundle/compiled.pyx", "service/wire/compiled.pyx", "training/compiled.pyx")

EXTENSIONS = cythonize(
    # the image has no training
    [Extension(source[:-4].replace("/", "."), [source]) for source in SOURCES if Path(source).exists()],
    build_dir="build",
)
for extension in EXTENSIONS:
    extension.optional = True  # cythonize forgets it
    extension.extra_compile_args = ["-g0"]  # half the time

setup(ext_modules=EXTENSIONS)
