"""Where the notebooks install the package from, and where their badges lead: one address, written into all of them.

    python -m experiments.colab --repository https://github.com/OWNER/NAME
    python -m experiments.colab                       # back to the checkout that they lie in

The project has no public address of its own. With one, a badge opens its notebook on Colab and the first cell installs the
package from there; without, the badge leads to Colab's page for files of one's own, and the cell installs the checkout.
"""

import argparse
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "notebooks"
COLAB = "https://colab.research.google.com"


def write(repository: str, folder: Path = FOLDER) -> list[Path]:
    """Write the address of a repository into every notebook of a folder; returns those that changed.

    Args:
      repository: ``https://github.com/OWNER/NAME``; empty: none.
      folder: of the notebooks.

    Raises:
      ValueError: for an address of another form.

    Example:
      >>> write("github.com/me")
      Traceback (most recent call last):
      ...
      ValueError: --repository must be https://github.com/OWNER/NAME; got 'github.com/me'.
    """
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repository)
    if repository and not found:
        raise ValueError(f"--repository must be https://github.com/OWNER/NAME; got {repository!r}.")
    changed = []
    for path in sorted(folder.glob("*.ipynb")):
        place = f"github/{found.group(1)}/blob/main/experiments/notebooks/{path.name}" if found else "#upload"
        install = f"git+https://github.com/{found.group(1)}" if found else ""
        old = path.read_text()
        new = re.sub(rf"\({re.escape(COLAB)}/(?:github/[^)]+|#upload)\)", f"({COLAB}/{place})", old)
        new = re.sub(r'REPOSITORY = \\"[^"\\]*\\"', f'REPOSITORY = \\\\"{install}\\\\"', new)
        if new != old:
            path.write_text(new)
            changed.append(path)
    return changed


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", default="")
    for path in write(parser.parse_args().repository):
        print(path.name)


if __name__ == "__main__":
    main()
