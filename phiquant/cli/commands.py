"""The commands and their options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import phiquant as library
from phiquant.cli import inspection
from phiquant.cli.compression import Job, Result, compress, preview
from phiquant.cli.outline import as_json
from phiquant.cli.progress import Progress, size
from phiquant.cli.source import Source
from phiquant.codec import FITS
from phiquant.config import PhiConfig
from phiquant.grid import GRIDS

_DEFAULT = PhiConfig()
_PATH = click.Path(path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(library.__version__, package_name="phiquant")
def phiquant() -> None:
    """Compress checkpoints, look into compressed ones, and say what this installation runs on."""


@phiquant.command("compress")
@click.argument("source", metavar="SRC", type=_PATH)
@click.argument("destination", metavar="DST", type=_PATH)
@click.option("--exact", is_flag=True, help="Keep every bit of the originals.")
@click.option("--index-bits", type=int, default=_DEFAULT.index_bits, show_default=True)
@click.option("--deviation-bits", type=int, default=_DEFAULT.deviation_bits, show_default=True)
@click.option("--group-size", type=int, default=_DEFAULT.group_size, show_default=True)
@click.option("--grid", type=click.Choice(GRIDS), default=_DEFAULT.grid, show_default=True)
@click.option(
    "--fit",
    type=click.Choice(FITS),
    default=_DEFAULT.fit,
    show_default=True,
    help="What the choice of bends minimises.",
)
@click.option(
    "--skip",
    multiple=True,
    metavar="PATTERN",
    help="Leave modules alone whose name has these segments, such as lm_head; a regular "
    "expression; may be given again.",
)
@click.option(
    "--max-shard-size",
    default="2GB",
    show_default=True,
    help="Bytes of one file; memory holds one file of compressed weights.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and the size; write nothing.")
@click.option("--force", is_flag=True, help="Replace a checkpoint at DST.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
@click.option("--progress/--no-progress", default=True, help="Show how far it is (on stderr).")
def _compress(
    source: Path,
    destination: Path,
    skip: tuple[str, ...],
    max_shard_size: str,
    dry_run: bool,
    force: bool,
    restart: bool,
    as_data: bool,
    progress: bool,
    **settings: Any,
) -> None:
    """Compress the checkpoint SRC into the folder DST.

    SRC is a folder of a transformers model with safetensors files, or any safetensors file (or
    folder without config.json): then every floating-point tensor of at least 2 dimensions whose
    name ends in "weight" is compressed.

    It may be larger than memory. DST appears when all is there. Interrupted, the same command goes
    on where it was.
    """
    with _clear_errors(interrupted="the same command goes on from here"):
        config = PhiConfig(**settings)
        job = Job(Source.at(source), destination, config, skip, max_shard_size)
        if job.source.config is None and not as_data:
            click.echo("no transformers model: weights are told by their names", err=True)
        if dry_run:
            report = preview(job)
            click.echo(json.dumps(as_json(report), indent=2) if as_data else str(report))
            return
        _say(job, compress(job, Progress(progress), force, restart), as_data)


def _say(job: Job, result: Result, as_data: bool) -> None:
    if as_data:
        more = {"resumed": result.resumed, "missing": result.missing, "not_copied": result.left}
        more["destination"] = str(job.destination)
        click.echo(json.dumps(as_json(result.report) | more, indent=2))
        return
    if result.resumed:
        click.echo(f"{result.resumed} tensors were there from an earlier run")
    if result.missing:
        click.echo(
            f"not in {job.source.path}, so not stored: {', '.join(result.missing)}", err=True
        )
    if result.left:
        click.echo(f"not copied, as code or other weights: {', '.join(result.left)}", err=True)
    click.echo(result.report.summary)
    click.echo(f"written to {job.destination}")


@phiquant.command("inspect")
@click.argument("path", type=_PATH)
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def _inspect(path: Path, as_data: bool) -> None:
    """List what the compressed checkpoint PATH holds, and the bytes that each tier reads."""
    with _clear_errors():
        found = inspection.inspect(path)
    if as_data:
        click.echo(json.dumps(found, indent=2))
        return
    for entry in found["weights"]:
        tiers = ", ".join(f"{tier} {size(count)}" for tier, count in entry["tiers"].items())
        shape = "x".join(map(str, entry["shape"]))
        click.echo(f"{entry['name']}  {shape}  {entry['bits_per_weight']:.2f} bits  ({tiers})")
    plain = sum(entry["bytes"] for entry in found["plain"])
    click.echo(f"{len(found['plain'])} plain tensors, {size(plain)}")
    for tier, total in found["tiers"].items():
        bits = f"{total['bits_per_weight']:.2f} bits a weight"
        click.echo(f"read at tier {tier!r}: {size(total['bytes'])}, {bits}")


@phiquant.command("verify")
@click.argument("path", type=_PATH)
def _verify(path: Path) -> None:
    """Decode every exact weight of PATH and compare it with the checksum of its original.

    The exit status is 0 if every bit is as it was, 1 if one is not or a file is damaged, and 2 if
    it cannot be told of a weight, because it was compressed without --exact.
    """
    with _clear_errors():
        result = inspection.verify_files(path)
    click.echo(str(result))
    raise SystemExit(1 if result.failed else 0 if result.complete else 2)


@phiquant.command("doctor")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def _doctor(as_data: bool) -> None:
    """Say which kernels and instruction set are in use and why, and what to mend.

    The exit status is 1 if there is something to mend.
    """
    result = library.doctor()
    click.echo(json.dumps(asdict(result), indent=2) if as_data else str(result))
    raise SystemExit(1 if result.remedies else 0)


@contextmanager
def _clear_errors(interrupted: str = "interrupted") -> Iterator[None]:
    """What went wrong in one line; a traceback only of a defect."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    except MemoryError as error:
        raise click.ClickException(f"out of memory: {error}") from error
    except KeyboardInterrupt:
        raise click.ClickException(f"interrupted; {interrupted}") from None
