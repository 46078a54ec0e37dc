"""`python -m synthe_cli`, as `torchrun -m synthe_cli` starts it."""

from synthe_cli.app import main

if __name__ == "__main__":
    main()
