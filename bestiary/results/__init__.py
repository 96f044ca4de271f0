"""Where a mixer stands: reference results of the protocol v1 that ship with the package, and the card of a mixer."""
