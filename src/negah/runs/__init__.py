"""One function per verb: the only place where rooms are composed."""
