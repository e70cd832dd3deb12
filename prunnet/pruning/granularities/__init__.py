"""What one score stands for, one file each."""
