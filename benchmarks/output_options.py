"""Where a benchmark's findings go, and whom it waits for: the options that all of them have."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_output_options(parser: argparse.ArgumentParser, section: str) -> None:
    """Add --lock, --write and --json. `section` is that of the document for --write."""
    parser.add_argument("--lock", type=Path, help="a lock file held during each timed piece")
    parser.add_argument("--write", type=Path, help=f"a Markdown file with a section named {section}")
    parser.add_argument("--json", action="store_true", help="print one JSON line last")
