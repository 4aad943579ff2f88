"""The one error of the artifact: a file that cannot be written or read, and why."""


class ArtifactError(ValueError):
    """A `.lepton` file that cannot be written, or is damaged, foreign or too new; says what and where."""
