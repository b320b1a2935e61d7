"""The version, alone in a file so that the build and the command's help read it without importing torch."""

__version__ = "0.1.0"


def code_version() -> str:
    """The version, with the commit of the git checkout or, in an image, the one that it was built from."""
    import os
    import subprocess
    from pathlib import Path

    if revision := os.environ.get("SNPDECONV_REVISION"):
        return f"{__version__}+{revision}"

    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return f"{__version__}+{described.stdout.strip()}" if described.returncode == 0 else __version__
