"""``python -m lepton_jax`` and ``lepton``: the command line."""

import sys

from lepton_jax.core.extras import import_extra


def main() -> int:
    """Run the command line, or say in one line how to install it."""
    try:
        import_extra("tyro", "cli")
    except ImportError as error:
        sys.exit(f"error: {error}")
    from lepton_jax.command_line import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
