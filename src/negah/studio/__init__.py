"""The web page: rooms over the functions of `negah.runs`, served on this machine alone by `negah studio`."""
