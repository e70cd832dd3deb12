"""Cut, re-estimate BatchNorm, embed, test; compare two networks."""
