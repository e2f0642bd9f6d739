"""Random middleware chains, run under Django's handlers and under this project's.

`specs` describes a chain as plain data; `strategies` draws such data. `acts` and
`layers` make the views and middleware from it, which write down in `notes`
that they were called. `project` has what else a project needs, and `servers` runs
requests through a chain under each of the three handlers.
"""
