"""Imported by the server from which workers are forked: they write a checkpoint after every step."""

import bestiary.sweep.checkpoints

bestiary.sweep.checkpoints.SAVE_EVERY = 0.0
bestiary.sweep.checkpoints.SHARE = 0
