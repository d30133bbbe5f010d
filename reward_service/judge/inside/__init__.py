"""Sources that run inside the sandbox, shipped as one text by `judge.bundle`: the standard library is all they import.

They are ordinary modules here, so that they are typed and tested; `wire` and `structures` serve outside as well.
"""
