"""The five operations of a decoder block, in plain MLX operations: the reference of every kernel."""
