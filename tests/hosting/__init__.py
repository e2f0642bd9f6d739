"""Tests over real sockets: the servers run as processes of their own."""
