"""Device profiles: one TOML file a board, data only, every physical number with its source."""
