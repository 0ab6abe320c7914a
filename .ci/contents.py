"""Wheel and source archive have the package, what it needs and what describes it, and nothing else.

``python .ci/contents.py DIST``, in a checkout.
"""

import sys
import tarfile
import zipfile
from pathlib import Path

dist = Path(sys.argv[1])
package = {
    path.as_posix()
    for pattern in ("*.py", "py.typed", "*.schema.json", "prose.txt")
    for path in Path("npmeta").rglob(pattern)
}
(wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
with zipfile.ZipFile(wheel) as archive:
    found = {name for name in archive.namelist() if ".dist-info/" not in name}
    licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
assert found == package, found ^ package
assert len(licences) == 1, licences
described = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in"}
described |= {"setup.cfg", "pyproject.toml", "PKG-INFO"}
with tarfile.open(source) as archive:
    files = {member.name.partition("/")[2] for member in archive if member.isfile()}
found = {name for name in files if not name.startswith("npmeta.egg-info/")}
assert found == package | described, found ^ (package | described)
print(f"{wheel.name}, {source.name}: {len(package)} files of the package")
