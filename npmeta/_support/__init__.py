"""What every room stands on: the boundary's checks, files, reading, output, signals, memory, BLAS."""
