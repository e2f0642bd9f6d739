"""Django's own test suite, run on Trio: the proof of the bridge.

    cd tests && python -m django_suite.run

`run` fetches the tests of the installed Django and starts `launch` in a process of its
own, which installs the bridge, the `recorder` and the `counterparts`, and then runs
Django's ``runtests.py``. What the recorder has seen comes back in a `journal`, and is
judged there. With ``--client``, the requests of Django's sync test client go through
`ASGIHandler`: see `sync_client`; what differs by design is in `accepted`.

Not one of Django's files is changed. pytest collects nothing here.
"""
