"""What all tests share; and by being here it makes the modules of this directory importable in those below."""
