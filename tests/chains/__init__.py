"""Random middleware chains, run under Django's handlers and under this project's.

`specs` says what a chain is, as plain data; `strategies` draws such data. `acts` and
`layers` make the views and middleware that it stands for, which write down in `notes`
that they were called. `project` has what else a project needs, and `servers` runs
requests through a chain under each of the three handlers.
"""
