"""Builds what is compiled; all else is in pyproject.toml.

An extension that cannot be built, for want of a C compiler say, is left out: the service then takes the paths that are
not compiled, and says so when it starts.
"""

from Cython.Build import cythonize
from setuptools import Extension, setup

EXTENSIONS = cythonize(
    [
        Extension("bundle.compiled", ["bundle/compiled.pyx"]),
        Extension("service.wire.compiled", ["service/wire/compiled.pyx"]),
    ],
    build_dir="build",
)
for extension in EXTENSIONS:
    extension.optional = True  # cythonize forgets it
    extension.extra_compile_args = ["-g0"]  # half the time

setup(ext_modules=EXTENSIONS)
