"""The native modules; everything else is in pyproject.toml."""

from setuptools import setup

from build_support.commands import BuildNative, PlatformWheel, native_modules

setup(
    ext_modules=native_modules(),
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
