"""Fakes of the outside world. Each passes the contract suite of the real one."""
