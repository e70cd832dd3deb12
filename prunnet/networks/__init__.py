"""A timm backbone with neck and classifier; slimmable networks; their files."""
