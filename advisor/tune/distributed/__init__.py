"""Several worker processes or machines on one run: database, lock, artifact store, devices."""
