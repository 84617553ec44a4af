"""The applications, one file each: the only place where tasks differ."""
