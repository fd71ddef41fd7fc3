"""One file a stage; `get_config(arg)` returns its configuration."""
