"""The sandbox: runs programs that a model wrote. What it guarantees and what it cannot stop: docs/security.md.

    opened = await opening.open_sandbox(options.SandboxOptions())  # the strongest jail here, or one that refuses
    outcome = await opened.sandbox.run(protocol.Program("python", {"main.py": b"print(1)"}), deadline_s=30)
    await opened.sandbox.close()

`protocol` is the contract; `opening` chooses; `warm`, `bubblewrap` and `runsc` are the implementations; `inside` is
what runs in a jail before the candidate does. This file imports nothing: a bare interpreter loads it on the way to
`inside`.
"""
