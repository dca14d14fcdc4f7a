"""What a pipeline means, in plain Python: the walk over a packet's headers, the evaluation of rules, and the state of
limits and sets.  Tests compare every engine with it.  It imports ``language`` alone: no compiler, no kernel."""
