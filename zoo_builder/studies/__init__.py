"""One file per reproduced phenomenon of a paper; a new file here is found by its class name. There is none yet."""
