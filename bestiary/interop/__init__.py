"""Where folders converted by version 0.1 look for the model; it lives in `bestiary.lm.huggingface` now."""
