"""``python -m lepton_jax``: the command line."""

import sys

if __name__ == "__main__":
    from lepton_jax.command_line import main

    sys.exit(main())
