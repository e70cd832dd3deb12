"""The command line `prunnet`, also as `python -m prunnet`. It stands on top of all packages and imports the jobs."""

from sweeps.cli import main

if __name__ == "__main__":
    main()
