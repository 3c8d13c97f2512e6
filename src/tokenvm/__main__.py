"""`python -m tokenvm` is the `tokenvm` command."""

from tokenvm.cli import main

if __name__ == "__main__":
    main()
