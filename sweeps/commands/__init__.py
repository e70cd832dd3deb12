"""The commands: one file each holds a command's arguments and what can be refused at once.

These files import no torch, timm, Ray, faiss or matplotlib: `--help` and a refusal take half a second. What a command
does stands in the module of `sweeps` that it calls; that module is imported when the arguments and the recipe are
accepted.
"""
