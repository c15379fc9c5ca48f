"""The command `vlcp-ray caption`."""

from pathlib import Path

from vlcp_ray.captioning.describe import (
    SUFFIXES,
    CaptionTable,
    check_captions,
    describe,
    format_rejected,
    preview,
)
from vlcp_ray.captioning.page import render
from vlcp_ray.monitoring.printable import printable
from vlcp_ray.settings import ConfigError
from vlcp_ray.stages.ingest import Ingest
from vlcp_ray.stages.pair import PROBLEMS, Caption

_PAGE: str = ".html"


def caption(settings: Ingest, how: Caption, to: str, count: int) -> int:
    """Caption an image set, or some of its images, and print what was done.

    Args:
        to: the table, or the page of a preview; "" for a preview in the terminal.
        count: images of a preview; 0: all are captioned.

    Raises:
        ConfigError: names the setting or the option, and the fix.
    """
    suffixes = (_PAGE,) if count else SUFFIXES
    if not count and not to:
        raise ConfigError("name the table: --to captions.parquet; or look at some captions first: --preview 8")
    if to and Path(to).suffix not in suffixes:
        raise ConfigError(f"--to {to}: {'a preview' if count else 'the table'} is {' or '.join(suffixes)}")
    check_captions(settings, how, to)
    if count:
        _preview(settings, how, to, count)
        return 0
    found = describe(settings, how, _load, Path(to).expanduser(), print)
    for line in format_rejected(found):
        print(printable(line))
    if found.cut:
        whose = "was cut before its" if found.cut == 1 else "were cut before their"
        print(f"{_captions(found.cut)} {whose} end; see caption.max_tokens")
    for name, number in found.problems.items():
        print(f"{_captions(number)} {PROBLEMS[name][number != 1]}")
    print(printable(f"{_captions(found.written)}: {to}; a job reads them with caption.source"))
    return 0


def _preview(settings: Ingest, how: Caption, to: str, count: int) -> None:
    """Print some captions, and write them to a page with their images."""
    rows = preview(settings, _load(how), count)
    for row in rows:
        tokens = f"{row['tokens']} tokens{', cut' * bool(row['is_cut'])}" if row["tokens"] else row["reason"]
        print(printable(f"{row['source']} ({row['class_name']}, {tokens})"))
        print(printable(f"  {row['caption'] or row['detail']}"))
    if to:
        Path(to).expanduser().write_text(render(settings.source, how, rows), encoding="utf-8")
    print(printable(f"the images with their captions: {to}" if to else "with the images: --to page.html"))


def _captions(count: int) -> str:
    return f"{count:,} caption{'s' * (count != 1)}"


def _load(how: Caption) -> CaptionTable:
    from vlcp_ray.stages.pair.caption import CaptionRows  # loads torch

    return CaptionRows(how)
