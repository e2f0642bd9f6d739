"""Django's own test suite, run on Trio: the proof of the bridge.

    cd tests && python -m django_suite.run

`run` fetches the tests of the installed Django and starts `launch` in a separate
process, which installs the bridge, the `recorder` and the `counterparts`, and then runs
Django's ``runtests.py``. What the recorder saw comes back in a `journal`, and is
judged there. With ``--client``, the requests of Django's sync test client go through
`ASGIHandler`: see `sync_client`; intended differences are in `accepted`.

None of Django's files is changed. pytest collects nothing here.
"""
