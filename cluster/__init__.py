"""How work is spread with Ray: data-parallel training, evaluation actors."""
