"""In the place of matplotlib, which takes longer to import than a short run: as if it were absent."""

raise ImportError("matplotlib is left out of this test")
