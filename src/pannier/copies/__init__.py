"""How copies are kept: replication, sync calls that wait for it, receiving, verification."""
