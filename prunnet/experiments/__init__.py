"""From a recipe to rows of the results table."""
