"""The figures of the contract, measured: `make bench`, or `python -m benchmarks --help`."""
