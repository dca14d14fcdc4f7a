"""The firewall: rulesets that stay in force on a device or a bridge, are changed without a lost packet, and are taken
back where they turn out to be wrong.

It is built on the framework's public API alone (``attach``, ``open_link``, sets, the ledger, replay) and imports from
every room below the command line.
"""
