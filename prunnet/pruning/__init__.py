"""Prunable layers, scores, masks, channel groups, multiply-adds: works on any `nn.Module`."""
