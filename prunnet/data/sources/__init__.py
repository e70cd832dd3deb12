"""Where images come from: folders, zips, decoding."""
