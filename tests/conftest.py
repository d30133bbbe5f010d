"""What holds for every test."""

from hypothesis import settings

# A property is judged by what it finds, not by how busy the machine is; CI's own profile stays what it is otherwise.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")
