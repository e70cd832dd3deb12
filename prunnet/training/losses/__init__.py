"""Losses of a network's own: on its classifier, with class weights, and of pairs."""
