"""A bare Debian 12 with a real systemd, in which a new user goes by the READMEs. Not part of the gate."""
