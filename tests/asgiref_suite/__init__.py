"""asgiref's own test suite, run on Trio: the bridge keeps asgiref's semantics.

    cd tests && python -m asgiref_suite.run

`run` fetches the tests of the installed asgiref and starts `launch` in a separate
process. That installs the bridge and the `recorder`, replaces names in asgiref's test
modules by their `counterparts`, and starts pytest with a `plugin` that runs async tests
on Trio. The results come back in the journal of `django_suite`, and are judged here.
`excluded` names the tests that are left out, and why.

None of asgiref's files is changed. pytest collects nothing here.
"""
