"""Training methods and compatibility losses, one file each."""
