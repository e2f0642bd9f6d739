"""A record of the trips that real requests make to their threads."""
