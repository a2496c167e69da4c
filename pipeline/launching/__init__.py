"""The one launcher of runs, for the sweep, the demo and the chaos tests.

==================  ==========================================================================
``command``         the ``deepspeed`` command and environment of a run: pure functions
``ports``           ``reserved_port``: the port at which its ranks meet
``run_process``     ``RunProcess``: a run on this node that can be watched, stopped and judged
``processes``       find and end the processes of a run on this host
``end_with_parent`` the program between ``RunProcess`` and ``deepspeed``
``private_folder``  where a later start finds the files of an earlier one
==================  ==========================================================================

Imports the base modules and ``output``.
"""
