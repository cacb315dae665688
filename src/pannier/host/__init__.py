"""The machine under us: clock, systemd, processes, files, mounts."""
