"""Programs in StableHLO, as files hold them, evaluated in jax: so they have a graph like any model."""

__all__: list[str] = []
