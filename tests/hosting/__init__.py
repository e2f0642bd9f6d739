"""Tests over real sockets: the servers run as separate processes."""
