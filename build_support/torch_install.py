"""The torch that phiquant will run with: where it lies and whether it can be built against.

torch itself is never imported: pip's isolated build environment hides the target environment from
`sys.path`, and importing torch takes seconds. Its `version.py` and headers say all that is needed.
"""

import re
import runpy
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLOOR = (2, 11)
REQUIREMENT = "torch>=2.11"


@dataclass(frozen=True)
class TorchInstall:
    """An installed torch package: its folder, version and the CUDA version it was built for."""

    root: Path
    version: str
    cuda: str | None

    @property
    def is_usable(self) -> bool:
        """Whether it is new enough and ships the headers of the stable ABI."""
        release = tuple(int(n) for n in re.findall(r"\d+", self.version)[:2])
        return release >= FLOOR and (self.include / "torch/csrc/stable/library.h").is_file()

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def lib(self) -> Path:
        return self.root / "lib"


def site_folders() -> Iterator[Path]:
    """Folders in which the target environment keeps packages, the visible ones first."""
    yield from (Path(entry) for entry in sys.path if entry)
    yield from (Path(sysconfig.get_path(kind)) for kind in ("platlib", "purelib"))
    if _sees_system_packages():
        yield from (Path(entry) for entry in site.getsitepackages([sys.base_prefix]))
        yield Path(site.getusersitepackages())


def find_torch() -> TorchInstall | None:
    """The first torch that can be built against, or None."""
    for folder in site_folders():
        if (folder / "torch/version.py").is_file():
            torch = _read(folder / "torch")
            if torch.is_usable:
                return torch
    return None


def _read(root: Path) -> TorchInstall:
    names = runpy.run_path(str(root / "version.py"))
    return TorchInstall(root, str(names["__version__"]), names.get("cuda"))


def _sees_system_packages() -> bool:
    if sys.prefix == sys.base_prefix:
        return True
    marker = Path(sys.prefix) / "pyvenv.cfg"
    text = marker.read_text(encoding="utf-8") if marker.is_file() else ""
    return re.search(r"(?mi)^include-system-site-packages\s*=\s*true\s*$", text) is not None
