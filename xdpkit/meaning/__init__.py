"""What a pipeline means, in plain Python: the walk over a packet's headers, the evaluation of rules, and the state that
limits
and sets keep.  Every engine is held to it.  It imports ``language`` alone: no compiler, no kernel."""
