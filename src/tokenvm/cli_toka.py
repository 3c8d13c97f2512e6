"""The `toka` command: Tokasaurus' key=value form of `tokenvm serve` and `tokenvm ping`."""

from __future__ import annotations

import sys

from tokenvm import cli
from tokenvm.errors import TokenVMError
from tokenvm.serve.toka import translate


def main() -> None:
    """Translate the command line, say on standard error what it means, and run that."""
    try:
        line, remarks = translate(sys.argv[1:])
    except TokenVMError as error:
        sys.stderr.write(f"toka: {error}\n")
        sys.exit(2)
    for remark in remarks:
        sys.stderr.write(f"toka: {remark}\n")
    sys.argv = ["tokenvm", *line]
    cli.main()
