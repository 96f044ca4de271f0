"""What a model does when it recalls: its mistakes by kind, and what happens when its input, stream or state is changed.

Everything here works on any model that reads tokens layer by layer: those that are trained here, and those whose
weights are written down (`bestiary.constructions`).
"""
