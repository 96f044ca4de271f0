"""Real text: corpora, tokens, counts of pairs, associative recall hits, and models trained on it."""
