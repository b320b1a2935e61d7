"""The version, alone in a file so that the build and the command's help read it without importing torch."""

__version__ = "0.1.0"


def code_version() -> str:
    """The version, with the commit where the package runs from a git checkout."""
    import subprocess
    from pathlib import Path

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
