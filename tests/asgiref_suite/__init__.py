"""asgiref's own test suite, run on Trio: what the bridge keeps of asgiref's meaning.

    cd tests && python -m asgiref_suite.run

`run` fetches the tests of the installed asgiref and starts `launch` in a process of its
own, which installs the bridge and the `recorder`, hands asgiref's test modules the
`counterparts` of what they name, and starts pytest with a `plugin` that runs async
tests on Trio. What happened comes back in the journal of `django_suite`, and is judged
here. `excluded` names the tests that are left out, and why.

Not one of asgiref's files is changed. pytest collects nothing here.
"""
